"""Sharding: the mesh, a table from axis names to mesh axes, and the shardings that follow.

A step runs inside `jax.shard_map`: every device has its share of each axis that the table splits,
and one program serves every mesh, that of one device included.  Networks name their axes and know
no mesh: what must be whole is gathered, and what several devices add up is summed, by those names.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, DTypeLike, Int

from onediff_jax.errors import InputError
from onediff_jax.settings import Section, setting

AXES = ("slices", "data", "fsdp", "sequence", "tensor")  # of the mesh, slowest network first
ROWS = ("slices", "data", "fsdp")  # devices along these work on different rows

# What an axis is called, and the mesh axes that split it; one that is not here is kept whole.  Of
# two axes of a matrix, fsdp splits the earlier in this table that it divides.  The order is
# measured: docs/log.md, "layout of parameters".
RULES: dict[str, tuple[str, ...]] = {
    "mlp": ("tensor", "fsdp"),  # of parameters
    "heads": ("tensor", "fsdp"),
    "condition": ("fsdp",),
    "embed": ("fsdp",),
    "text": ("fsdp",),
    "kv": ("tensor", "fsdp"),  # late: of 960 columns, 32 devices have 30, which are no whole tiles
    "channels": ("fsdp",),
    "channels_in": ("fsdp",),
    "b": ROWS,  # of a batch, by the letters of ops/dims.py
    "n": ("sequence",),
}
SUMMED = "summed"  # sums over devices, as rematerialisation knows them


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
    """Devices along each axis; one may be -1 and takes what the others leave."""

    slices: int = setting(1, "groups of devices joined by a slower network, each with whole copies")
    data: int = setting(-1, "copies of the state")
    fsdp: int = setting(1, "shards of the state")
    sequence: int = setting(1, "parts that every row is cut into")
    tensor: int = setting(1, "parts that heads and feed-forward layers are cut into")

    def __post_init__(self):
        sizes = self.sizes
        if sizes.count(-1) > 1 or min(sizes) < -1 or 0 in sizes:
            raise InputError(f"{self.said}; use positive numbers, one may be -1.")

    @property
    def sizes(self) -> list[int]:
        """In the order of the mesh."""
        return [getattr(self, axis) for axis in AXES]

    @property
    def said(self) -> str:
        """The settings as error messages name them."""
        named = dict(zip(AXES, self.sizes, strict=True))
        shown = [axis for axis in AXES if axis in ("data", "fsdp") or named[axis] != 1]
        names = " x ".join(f"mesh.{axis}" for axis in shown)
        return f"{names} is {' x '.join(str(named[axis]) for axis in shown)}"


def mesh_of(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (all of them where none are given).

    Raises InputError where its axes do not divide them, or its slices are not those of the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise InputError(
            f"{config.said}, which does not make {len(devices)} devices; set one of them to -1 and "
            f"the others to a divisor of {len(devices)}."
        )
    return Mesh(device_grid(devices, sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def device_grid(devices: Sequence[Any], sizes: Sequence[int]) -> np.ndarray:
    """The devices in the shape of the mesh: neighbours along an axis are near in the network."""
    slices, *inner = sizes
    found = {getattr(device, "slice_index", None) for device in devices}
    if devices[0].platform != "tpu" or len(found) == slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    if len(found) != slices:
        raise InputError(
            f"mesh.slices is {slices}, and the devices make {len(found)} slices; set it to that."
        )
    return mesh_utils.create_hybrid_device_mesh(
        (1, *inner), (slices, *[1] * len(inner)), devices, allow_split_physical_axes=True
    )


def shardings_of(boxed: Any, mesh: Mesh) -> Any:
    """A sharding for every parameter of `eval_shape`d, boxed variables, by the table.

    Vectors are not split by fsdp: they are small, and every gathering has its price.
    """

    def place(shape: jax.ShapeDtypeStruct, names: P) -> NamedSharding:
        parts: list[tuple[str, ...]] = [()] * len(names)
        matrix = len(names) - ("layers" in names) > 1
        for mesh_axis in ("tensor", "fsdp") if matrix else ("tensor",):
            for axis in (axis for axis, splitting in RULES.items() if mesh_axis in splitting):
                i = names.index(axis) if axis in names else None
                if i is None or mesh.shape[mesh_axis] == 1:
                    continue
                split = (*parts[i], mesh_axis)
                if shape.shape[i] % math.prod(mesh.shape[each] for each in split) == 0:
                    parts[i] = split
                    break
        return NamedSharding(mesh, P(*(part or None for part in parts)))

    return jax.tree.map(place, nn.meta.unbox(boxed), nn.get_partition_spec(boxed))


def specs_of(init: Callable[[Array], Any], mesh: Mesh) -> Any:
    """How the parameters that a function of a key initialises, boxed, are split."""
    shardings = shardings_of(jax.eval_shape(init, jax.random.key(0)), mesh)
    return jax.tree.map(lambda sharding: sharding.spec, shardings)


def sharded_arrays(arrays: Any, shardings: Any) -> Any:
    """Arrays of the host, the same in every process, where their shardings say."""

    def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, arrays, shardings)


def axes_in(spec: P) -> list[tuple[str, ...]]:
    """The mesh axes that split every axis of an array."""
    return [(names,) if isinstance(names, str) else (names or ()) for names in spec]


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, P())


# Batches


def letters_of(kind: type) -> tuple[tuple[str, ...], ...]:
    """The axes of every field of a batch, a NamedTuple type, by the letters of its shape."""
    fields = typing.get_type_hints(kind).values()
    shapes = [(*typing.get_args(field), field)[0].dim_str for field in fields]  # of kinds, one
    return kind(*(tuple(shape.replace("*", "").split()) for shape in shapes))


def batch_specs(kind: type) -> Any:
    """How the fields of a batch are split."""
    return kind(*(P(*map(RULES.get, letters)) for letters in letters_of(kind)))


def local_rows(mesh: Mesh, rows: int) -> list[int]:
    """The rows of a batch that this process's devices hold, whole or in part, in order."""
    held = NamedSharding(mesh, P(ROWS)).addressable_devices_indices_map((rows,)).values()
    return sorted({row for index in held if index for row in range(*index[0].indices(rows))})


def global_batch(local: Any, mesh: Mesh, rows: int) -> Any:
    """A batch of global arrays of which this process has the rows that `local_rows` names."""
    place = {row: i for i, row in enumerate(local_rows(mesh, rows))}

    def make(array: np.ndarray, spec: P) -> jax.Array:
        def read(index):
            wanted = [place[row] for row in range(*index[0].indices(rows))]
            return array[wanted][:, *index[1:]]

        shape = (rows, *array.shape[1:])
        return jax.make_array_from_callback(shape, NamedSharding(mesh, spec), read)

    return jax.tree.map(make, local, batch_specs(type(local)))


def check_rows(rows: int, accumulate: int, mesh: Mesh) -> None:
    """Raises where a batch does not divide over devices and accumulation."""
    copies = math.prod(mesh.shape[axis] for axis in ROWS)
    unit = copies * accumulate
    if rows % unit:
        below, above = rows // unit * unit, (rows // unit + 1) * unit
        each = f", each row on {mesh.size // copies}," if copies < mesh.size else ""
        raise InputError(
            f"rows is {rows}, not a multiple of {mesh.size} devices{each} x {accumulate} "
            f"accumulated parts, {unit}; use {f'{below} or ' if below else ''}{above}."
        )


def check_tensor(sizes: Mapping[str, int], parts: int) -> None:
    """Raises where the tensor axis does not divide what it is to split, given by its settings."""
    common = math.gcd(*sizes.values())
    for name, size in sizes.items():
        if size % parts:
            fits = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
            raise InputError(
                f"mesh.tensor is {parts}, which does not divide {name}, {size}; it can be {fits}."
            )


# Inside jax.shard_map


@dataclasses.dataclass(frozen=True)
class Group:
    """The devices that share an axis: those along one axis of a mesh, or one alone."""

    name: str | None = None
    size: int = 1

    @property
    def index(self) -> Int[Array, ""] | int:
        """The number of this device among them."""
        return jax.lax.axis_index(self.name) if self.name else 0

    def share(self, size: int) -> int:
        """What one of them has of an axis of a size that they divide."""
        return size // self.size

    def sum(self, x: Array) -> Array:
        """The sum over them."""
        if self.size == 1:
            return x
        return checkpoint_name(jax.lax.psum(x, self.name), SUMMED)

    def gather(self, x: Array, axis: int) -> Array:
        """Their shares, joined along an axis."""
        if self.size == 1:
            return x
        return jax.lax.all_gather(x, self.name, axis=axis % x.ndim, tiled=True)


ALONE = Group()


@dataclasses.dataclass(frozen=True)
class Parallel:
    """The groups of devices among which a network's own work is split; none: it works alone."""

    groups: tuple[Group, ...] = ()

    def group(self, axis: str) -> Group:
        """The devices that share an axis, by the name that the network has for it."""
        splitting = RULES.get(axis, ())
        return next((group for group in self.groups if group.name in splitting), ALONE)


def mesh_group(mesh: Mesh, axis: str) -> Group:
    """The devices along an axis of the mesh."""
    return Group(axis, mesh.shape[axis]) if mesh.shape[axis] > 1 else ALONE


def gather_params(
    params: Any, specs: Any, dtype: DTypeLike | None = None, sums: DTypeLike | None = None
) -> Any:
    """Parameters brought together from the shards of fsdp; matrices in `dtype` if one is given.

    The transpose scatters gradients: every device gets the sum of its shard's, in the type of what
    was gathered or, if that is wider, in `sums`.
    """

    def bring(param: Array, spec: P) -> Array:
        kind = param.dtype if dtype is None or param.ndim < 2 else jnp.dtype(dtype)
        added = kind if sums is None else jnp.promote_types(kind, sums)
        axes = tuple(i for i, names in enumerate(axes_in(spec)) if "fsdp" in names)
        return gathered_array(param, axes, kind, added)

    return jax.tree.map(bring, params, specs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def gathered_array(param: Array, axes: tuple[int, ...], dtype: Any, sums: Any) -> Array:
    """A parameter in `dtype`, joined along the axes that fsdp splits."""
    param = param.astype(dtype)  # before the all-gather
    for axis in axes:
        param = jax.lax.all_gather(param, "fsdp", axis=axis, tiled=True)
    return param


def _gathered(param: Array, axes: tuple[int, ...], dtype: Any, sums: Any) -> tuple[Array, Array]:
    like = jnp.zeros(0, param.dtype)  # the gradient's type
    return gathered_array(param, axes, dtype, sums), like


def _scattered(axes: tuple[int, ...], dtype: Any, sums: Any, like: Array, gradient: Array):
    gradient = gradient.astype(sums)
    for axis in reversed(axes):
        gradient = jax.lax.psum_scatter(gradient, "fsdp", scatter_dimension=axis, tiled=True)
    return (gradient.astype(like.dtype),)


gathered_array.defvjp(_gathered, _scattered)


def sum_gradients(gradients: Any, specs: Any, mesh: Mesh) -> Any:
    """Gradients summed over the devices that hold the same shard of a parameter."""
    several = [axis for axis in AXES if mesh.shape[axis] > 1]

    def total(gradient: Array, spec: P) -> Array:
        split = {axis for mesh_axes in axes_in(spec) for axis in mesh_axes}
        copies = tuple(axis for axis in several if axis not in split)
        return jax.lax.psum(gradient, copies) if copies else gradient

    return jax.tree.map(total, gradients, specs)
