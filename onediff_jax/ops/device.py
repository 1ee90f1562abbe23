"""The device that a program is being traced for."""

import jax


def kind() -> str:
    """As JAX names it, such as TPU v3; inside `jax.shard_map` that of its mesh, perhaps absent."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device else jax.devices()[0].device_kind
