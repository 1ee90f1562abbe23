"""The device that a program is being traced for."""

import jax
from jax.sharding import AxisType


def kind() -> str:
    """As JAX names it, such as TPU v3; inside `jax.shard_map` that of its mesh, perhaps absent."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device else jax.devices()[0].device_kind


def partitioned() -> bool:
    """Whether the compiler may split what is traced over several devices: outside of
    `jax.shard_map` over a whole mesh, where there are several."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.device_count() > 1
    return any(
        size > 1 and kind != AxisType.Manual
        for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    )
