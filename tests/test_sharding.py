import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from onediff_jax import sharding
from onediff_jax.data.batching.rows import Batch
from onediff_jax.errors import InputError
from onediff_jax.models.nextdit import NextDiT, NextDiTConfig
from onediff_jax.ops.layout import Layout, Slot
from onediff_jax.sharding import (
    ALONE,
    MeshConfig,
    Parallel,
    batch_specs,
    check_rows,
    check_tensor,
    device_grid,
    gather_params,
    global_batch,
    local_rows,
    mesh_group,
    mesh_of,
    shardings_of,
)

SIZES = {"model.heads": 32, "model.kv_heads": 8, "the feed-forward width of the model": 10240}


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """A device of two pods that are not here, squares of 4 x 4, numbered in turn."""

    id: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    process_index: int = 0
    core_on_chip: int = 0

    @property
    def slice_index(self):
        return self.id % 2

    @property
    def coords(self):
        return self.id // 2 % 4, self.id // 8, 0


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (dict(), (1, 8, 1, 1, 1)),
        (dict(fsdp=4), (1, 2, 4, 1, 1)),
        (dict(data=1, fsdp=-1, tensor=2), (1, 1, 4, 1, 2)),
        (dict(slices=2, sequence=2), (2, 2, 1, 2, 1)),
    ],
)
def test_one_axis_takes_what_the_others_leave(sizes, expected):
    assert tuple(mesh_of(MeshConfig(**sizes)).shape.values()) == expected


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(data=3), "mesh.data x mesh.fsdp is 3 x 1, which does not make 8 devices"),
        (dict(tensor=3), r"mesh.data x mesh.fsdp x mesh.tensor is -1 x 1 x 3.*divisor of 8"),
        (dict(fsdp=-1), "one may be -1"),
        (dict(sequence=0), r"mesh.sequence is -1 x 1 x 0; use positive numbers"),
    ],
)
def test_a_mesh_that_devices_do_not_make_is_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        mesh_of(MeshConfig(**sizes))


def test_slices_are_the_outer_axis_of_the_mesh():
    devices = [FakeDevice(i) for i in range(32)]
    mesh = device_grid(devices, (2, 4, 4, 1, 1))
    assert mesh.shape == (2, 4, 4, 1, 1)
    assert [{device.slice_index for device in part.flat} for part in mesh] == [{0}, {1}]
    with pytest.raises(InputError, match="mesh.slices is 1, and the devices make 2 slices"):
        device_grid(devices, (1, 8, 4, 1, 1))


def specs_of(**mesh: int) -> dict[str, P]:
    """Where the released parameters lie."""
    config = NextDiTConfig()
    shapes = [
        ((1, 4, config.features), float),
        ((1, 1), float),
        ((1, 4, 3), int),
        ((1, 1), int),
        ((1, 4), bool),
        ((1, 1, 5, 2048), float),
        ((1, 1, 5), bool),
    ]
    inputs = [jnp.zeros(shape, dtype) for shape, dtype in shapes]
    layout = Layout((Slot(1, 4),))
    boxed = jax.eval_shape(lambda: NextDiT(config).init(jax.random.key(0), *inputs, layout))
    shapes = jax.tree.leaves(nn.meta.unbox(boxed))
    found = shardings_of(boxed, mesh_of(MeshConfig(**mesh)))
    specs = {}
    for (path, place), shape in zip(
        jax.tree_util.tree_leaves_with_path(found), shapes, strict=True
    ):
        place.shard_shape(shape.shape)  # raises where it does not divide
        specs["/".join(key.key for key in path[1:])] = place.spec
    return specs


def test_the_table_places_matrices_over_fsdp_and_keeps_vectors_whole():
    specs = specs_of(data=2, fsdp=4)
    block = {name.removeprefix("layers/"): spec for name, spec in specs.items()}
    assert block["feed_forward/w1/kernel"] == P(None, None, "fsdp")
    assert block["feed_forward/w2/kernel"] == P(None, "fsdp", None)
    assert block["attention/wq/kernel"] == P(None, None, "fsdp")
    assert block["attention/wk/kernel"] == block["attention/wk_y/kernel"] == P(None, "fsdp", None)
    assert block["attention/wo/kernel"] == P(None, "fsdp", None)
    assert block["adaln/kernel"] == P(None, "fsdp", None)
    assert block["x_embedder/kernel"] == P(None, "fsdp")
    for name, spec in specs.items():
        assert ("fsdp" in spec) == name.endswith("kernel"), name


def test_heads_and_feed_forward_are_split_by_tensor_first_and_by_fsdp_within():
    specs = specs_of(data=1, fsdp=4, tensor=2)
    block = {name.removeprefix("layers/"): spec for name, spec in specs.items()}
    both = ("tensor", "fsdp")
    assert block["feed_forward/w1/kernel"] == P(None, None, both)
    assert block["feed_forward/w2/kernel"] == P(None, both, None)
    assert block["attention/wq/kernel"] == P(None, None, both)
    assert block["attention/wk/kernel"] == P(None, "fsdp", "tensor")
    assert block["attention/gate"] == P(None, "tensor")
    assert block["attention/q_norm/scale"] == P(None, "tensor")
    assert block["adaln/kernel"] == P(None, "fsdp", None)
    assert block["attention_norm1/scale"] == P(None, None)


def test_an_axis_that_fsdp_does_not_divide_leaves_it_to_the_next():
    boxed = {"w": nn.Partitioned(jax.ShapeDtypeStruct((8, 6), float), ("embed", "mlp"))}
    specs = shardings_of(boxed, mesh_of(MeshConfig(data=1, fsdp=8)))
    assert specs["w"].spec == P("fsdp", None)


def test_a_tensor_axis_that_does_not_divide_is_refused_with_what_does():
    check_tensor(SIZES, 8)
    message = r"mesh.tensor is 16, which does not divide model.kv_heads, 8; it can be 1, 2, 4, 8\."
    with pytest.raises(InputError, match=message):
        check_tensor(SIZES, 16)


def test_rows_must_divide_over_the_devices_that_have_different_ones():
    mesh = mesh_of(MeshConfig(data=2, fsdp=2, tensor=2))
    check_rows(8, 2, mesh)
    message = r"rows is 10, not a multiple of 8 devices, each row on 2, x 2 .*, 8; use 8 or 16"
    with pytest.raises(InputError, match=message):
        check_rows(10, 2, mesh)


# Batches

LAYOUT = Layout((Slot(2, 4),))


def numbered_batch(rows: int) -> Batch:
    """Every number tells its row and place."""
    shapes = dict(
        latents=(8, 3), positions=(8, 3), example_of_view=(2,), token_mask=(8,), text=(1, 5)
    )
    shapes |= dict(deviations=(8, 0), pixels=(8, 0), encoded=(2,))
    shapes |= dict(text_mask=(1, 5), task=(1,), source=(1,), bad_records=(1,))
    return Batch(
        **{
            name: np.arange(rows)[(..., *[None] * len(shape))] * 1000
            + np.arange(np.prod(shape)).reshape(shape)
            for name, shape in shapes.items()
        }
    )


def test_a_batch_is_split_by_the_letters_of_its_shapes():
    rows = ("slices", "data", "fsdp")
    specs = batch_specs(Batch)
    assert specs.latents == specs.positions == P(rows, "sequence", None)
    assert specs.token_mask == P(rows, "sequence")
    assert specs.text == P(rows, None, None) and specs.task == P(rows, None)


@pytest.mark.parametrize(
    "sizes", [dict(), dict(data=2, fsdp=2, tensor=2), dict(data=2, sequence=4), dict(slices=2)]
)
def test_every_device_holds_the_rows_and_tokens_of_its_place_in_any_order_of_devices(sizes):
    devices = list(np.random.default_rng(0).permutation(np.array(jax.devices())))
    mesh = mesh_of(MeshConfig(**sizes), devices)
    batch = numbered_batch(16)
    assert local_rows(mesh, 16) == list(range(16))
    placed = global_batch(batch, mesh, 16)
    shape = mesh.devices.shape
    for name, expected in batch._asdict().items():
        array = getattr(placed, name)
        np.testing.assert_array_equal(array, expected)
        copies, parts = shape[0] * shape[1] * shape[2], shape[3]
        for shard in array.addressable_shards:
            *at, part, _ = np.argwhere(mesh.devices == shard.device)[0]
            row = np.ravel_multi_index(at, shape[:3]) * 16 // copies
            rows = expected[row : row + 16 // copies]
            if expected.shape[1:2] == (8,):
                rows = rows[:, part * 8 // parts : (part + 1) * 8 // parts]
            np.testing.assert_array_equal(shard.data, rows)


def test_a_process_reads_the_rows_that_its_devices_hold_whole_or_in_part(monkeypatch):
    """Of processes that have two devices each: rows are the same along sequence and tensor."""

    def held(process: int, **sizes: int) -> list[int]:
        mesh = mesh_of(MeshConfig(**sizes))
        mine = {device for device in jax.devices() if device.id // 2 == process}
        whole = jax.sharding.NamedSharding.devices_indices_map
        monkeypatch.setattr(
            jax.sharding.NamedSharding,
            "addressable_devices_indices_map",
            lambda self, shape: {d: i for d, i in whole(self, shape).items() if d in mine},
        )
        return sharding.local_rows(mesh, 8)

    assert [held(i) for i in range(4)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [held(i, tensor=2) for i in range(4)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [held(i, sequence=4) for i in range(4)] == 2 * [[0, 1, 2, 3]] + 2 * [[4, 5, 6, 7]]
    assert [held(i, data=1, sequence=4, tensor=2) for i in range(4)] == 4 * [list(range(8))]


# Inside jax.shard_map


def test_a_network_asks_for_groups_by_the_names_of_its_axes():
    mesh = mesh_of(MeshConfig(data=2, sequence=2, tensor=2))
    tensor, sequence = mesh_group(mesh, "tensor"), mesh_group(mesh, "sequence")
    parallel = Parallel((tensor, sequence))
    groups = [parallel.group(axis) for axis in ("heads", "kv", "mlp", "n", "embed", "rank")]
    assert groups == [tensor, tensor, tensor, sequence, ALONE, ALONE]
    assert Parallel().group("heads") is ALONE and Parallel((tensor,)).group("n") is ALONE
    assert tensor.share(10) == 5 and ALONE.share(10) == 10


@pytest.mark.parametrize(("sums", "least", "most"), [(None, 1e-3, 1e-2), ("float32", 0, 1e-6)])
def test_gradients_of_what_is_gathered_in_bfloat16_are_added_up_in_the_type_of_sums(
    sums, least, most
):
    """Eight devices' shares of a gradient, bfloat16 numbers, against their exact sum."""
    mesh = mesh_of(MeshConfig(data=1, fsdp=8))
    rng = np.random.default_rng(0)
    shares = jnp.asarray(rng.normal(size=(8, 64, 16)), jnp.bfloat16)
    params = jnp.zeros((64, 16))

    def loss(param, share):
        whole = gather_params(param, P("fsdp"), jnp.bfloat16, sums)
        assert whole.dtype == jnp.bfloat16
        return (whole * share[0]).sum(dtype=jnp.float32)

    gradient = jax.jit(
        jax.shard_map(
            jax.grad(loss), mesh=mesh, in_specs=(P("fsdp"), P("fsdp")), out_specs=P("fsdp"),
            check_vma=False,
        )
    )(params, shares)  # fmt: skip
    exact = np.float64(shares).sum(0)
    error = np.linalg.norm(gradient - exact) / np.linalg.norm(exact)
    assert gradient.dtype == jnp.float32 and least <= error <= most
