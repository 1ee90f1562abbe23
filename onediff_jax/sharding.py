"""Where every array lives: the mesh, a table from axis names to mesh axes, and placement by it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from onediff_jax.errors import InputError

AXES = ("data", "fsdp")
ROWS = P(AXES)  # a batch is split over every device

# What a model calls an axis, and the mesh axis that splits it; of two axes of a matrix, the earlier
# in this table. An axis that is not here is kept whole.  The order is measured: docs/design.md,
# "Parameter layout".
RULES = {
    axis: "fsdp"
    for axis in ("mlp", "heads", "kv", "condition", "embed", "text", "channels", "channels_in")
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 takes what the other leaves."""

    data: int = -1  # copies of the state
    fsdp: int = 1  # shards of the state

    def __post_init__(self):
        if (
            (self.data, self.fsdp).count(-1) > 1
            or min(self.data, self.fsdp) < -1
            or 0 in (self.data, self.fsdp)
        ):
            raise InputError(
                f"mesh.data is {self.data} and mesh.fsdp is {self.fsdp}; use positive numbers, one "
                "may be -1."
            )


def mesh_of(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (all of them where none are given).

    Raises InputError where its axes do not divide them.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp]
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise InputError(
            f"mesh.data x mesh.fsdp is {config.data} x {config.fsdp}, which does not make "
            f"{len(devices)} devices; "
            f"set one of them to -1 and the other to a divisor of {len(devices)}."
        )
    return jax.make_mesh(
        tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def shardings_of(boxed: Any, mesh: Mesh) -> Any:
    """A sharding for every parameter of `eval_shape`d, boxed variables, by the table.

    An axis that the mesh does not divide is kept whole.
    """

    def place(shape, spec):
        names: list[str | None] = [None] * len(spec)
        for axis, mesh_axis in RULES.items():
            if axis in spec and mesh_axis not in names:
                i = spec.index(axis)
                names[i] = mesh_axis if shape.shape[i] % mesh.shape[mesh_axis] == 0 else None
        return NamedSharding(mesh, P(*names))

    return jax.tree.map(place, nn.meta.unbox(boxed), nn.get_partition_spec(boxed))


def placed(arrays: Any, shardings: Any) -> Any:
    """Arrays of the host, the same in every process, where their shardings say."""

    def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, arrays, shardings)


def local_rows(mesh: Mesh, rows: int) -> list[int]:
    """The rows of a batch that this process's devices hold, in order."""
    held = NamedSharding(mesh, ROWS).addressable_devices_indices_map((rows,)).values()
    return sorted({row for index in held for row in range(*index[0].indices(rows))})


def global_batch(local: Any, mesh: Mesh, rows: int) -> Any:
    """A batch of global arrays of which this process has the rows that `local_rows` names."""
    place = {row: i for i, row in enumerate(local_rows(mesh, rows))}
    sharding = NamedSharding(mesh, ROWS)

    def make(array: np.ndarray) -> jax.Array:
        def read(index):
            wanted = [place[row] for row in range(*index[0].indices(rows))]
            return array[wanted[0] : wanted[-1] + 1] if wanted else array[:0]

        return jax.make_array_from_callback((rows, *array.shape[1:]), sharding, read)

    return jax.tree.map(make, local)


def check_rows(rows: int, accumulate: int, mesh: Mesh) -> None:
    """Raises where a batch does not divide over devices and accumulation."""
    unit = mesh.size * accumulate
    if rows % unit:
        below, above = rows // unit * unit, (rows // unit + 1) * unit
        raise InputError(
            f"rows is {rows}, not a multiple of {mesh.size} devices x {accumulate} accumulated "
            "parts; "
            f"use {f'{below} or ' if below else ''}{above}."
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, P())
