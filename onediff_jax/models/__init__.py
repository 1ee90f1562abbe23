"""The networks: Next-DiT and the text encoder, thin Flax Linen modules."""
