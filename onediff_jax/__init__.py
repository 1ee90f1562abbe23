"""OneDiffusion in JAX: one flow-matching Next-DiT; every image task is a sequence of views."""
