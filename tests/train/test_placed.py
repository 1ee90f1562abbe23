"""What a plan takes for a run's step is what the run's step is given."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tiny import tiny_config

from onediff_jax.data.batching.loader import Rows
from onediff_jax.data.batching.settings import examples_per_row, layout_of
from onediff_jax.data.codecs import LinearCodec
from onediff_jax.data.sources.cache import Cache
from onediff_jax.data.sources.folder import Folder
from onediff_jax.data.text import vocabulary_of
from onediff_jax.errors import InputError
from onediff_jax.plan.topologies import GENERATIONS, devices_of, topology_of
from onediff_jax.sharding import MeshConfig, global_batch, mesh_of
from onediff_jax.train.compile import COMPILER_OPTIONS, Shapes, planned_step
from onediff_jax.train.config import RunConfig
from onediff_jax.train.encoders import CodecConfig, TextConfig, pretrained_shapes, tokenizer_of
from onediff_jax.train.prepare import open_sources, prepare


def shapes_of(config: RunConfig, **mesh: int) -> Shapes:
    return planned_run(dataclasses.replace(config, mesh=MeshConfig(**mesh)))[1]


def planned_run(config: RunConfig, states: bool = False):
    return planned_step(prepare(config, absent=True), states)


def test_batches_have_the_planned_shapes_types_and_places():
    config = tiny_config(rows=16)
    vocabulary = vocabulary_of(["a red box and a blue ball"] * 4, 100)
    codec = LinearCodec(*(np.zeros(size, np.float32) for size in (12, (12, 8), (8, 12))))
    tokenizer = tokenizer_of(config.text, vocabulary)
    rows = Rows(config.data, open_sources(config.data, "train"), codec, 2, tokenizer, 0)
    assert rows.layout == layout_of(config.data)
    mesh = mesh_of(dataclasses.replace(config.mesh, data=2, fsdp=4))
    local = jax.tree.map(lambda x: np.stack([x] * 16), rows[3])
    batch = global_batch(local, mesh, 16)
    expected = shapes_of(config, data=2, fsdp=4).batch
    for name, found, planned_for in zip(batch._fields, batch, expected, strict=True):
        assert (found.shape, found.dtype) == (planned_for.shape, planned_for.dtype), name
        assert found.sharding.is_equivalent_to(planned_for.sharding, found.ndim), name


@pytest.mark.slow
def test_rows_hold_as_many_examples_as_are_counted():
    config = tiny_config()
    rows = Rows(
        config.data,
        open_sources(config.data, "train"),
        LinearCodec(*(np.zeros(size, np.float32) for size in (12, (12, 8), (8, 12)))),
        2,
        tokenizer_of(config.text, vocabulary_of(["a b c"] * 9, 100)),
        0,
    )
    counted = np.mean([len(rows.examples(row)) for row in range(1024)])
    assert examples_per_row(config.data) == pytest.approx(counted, abs=1e-9)


RELEASED = dict(
    text=TextConfig(kind="t5", path="/there/is/none", length=30),
    codec=CodecConfig(kind="sd3_vae", path="/there/is/none"),
)


def released(**sources) -> RunConfig:
    """A run of released networks that are not here."""
    config = tiny_config(**RELEASED)
    model = dataclasses.replace(config.model, channels=16)
    data = dataclasses.replace(config.data, sources=sources, aspects="square")
    return dataclasses.replace(config, model=model, data=data)


def test_released_networks_that_are_not_here_have_the_release_s_shapes():
    shapes = shapes_of(released(cached=Cache("/no/cache")))
    assert set(shapes.pretrained) == {"text"}
    # T5 v1.1 XL's encoder: huggingface.co/google/t5-v1_1-xl, 1,223,527,424 with its embedding.
    sizes = jax.tree.map(lambda leaf: leaf.size, shapes.pretrained)
    assert sum(jax.tree.leaves(sizes)) == 1_223_527_424
    assert shapes.pretrained["text"]["embedding"].dtype == ml_dtypes.bfloat16
    assert shapes.batch.text.shape[2:] == (30,) and shapes.batch.text.dtype == np.int32
    assert set(shapes.state.params) == {"denoiser"}


def test_caches_carry_deviations_and_images_are_encoded_inside():
    cached, mixed = released(cached=Cache("/a")), released(cached=Cache("/a"), folder=object())
    features = 16 * 2**2
    batch = shapes_of(cached).batch
    assert batch.deviations.shape[-1] == features and batch.pixels.shape[-1] == 0
    shapes = shapes_of(mixed)
    assert shapes.batch.pixels.shape[-1] == 3 * 16**2
    assert set(shapes.pretrained) == {"text", "codec"}
    means = dataclasses.replace(cached, codec=dataclasses.replace(cached.codec, posterior="mean"))
    assert shapes_of(means).batch.deviations.shape[-1] == 0


def test_states_of_caches_take_the_encoder_s_place():
    config = released(cached=Cache("/no/cache"))
    shapes = planned_run(config, states=True)[1]
    assert shapes.pretrained == {}
    assert shapes.batch.text.shape[2:] == (30, 2048)
    assert shapes.batch.text.dtype == ml_dtypes.bfloat16
    with pytest.raises(InputError, match="has 1 other sources"):
        planned_run(released(folder=Folder("/no/folder")), states=True)
    with pytest.raises(InputError, match="text.kind is 'trained'"):
        planned_run(tiny_config(), states=True)


def test_frozen_parameters_are_split_as_the_table_says():
    config = released(cached=Cache("/no/cache"))
    config = dataclasses.replace(config, mesh=MeshConfig(data=1, fsdp=8))
    run, shapes = planned_run(config)
    wi = shapes.pretrained["text"]["layers"]["wi_0"]["kernel"]
    assert wi.sharding.shard_shape(wi.shape) == (24, 2048, 5120 // 8)
    assert (
        pretrained_shapes(run.networks, config.text, mesh_of(config.mesh), ("text",))
        == shapes.pretrained
    )


def test_the_compiler_is_told_what_its_kind_of_device_needs(monkeypatch):
    config = tiny_config(rows=8)
    assert jax.devices()[0].device_kind not in COMPILER_OPTIONS  # options of others are refused

    monkeypatch.setitem(COMPILER_OPTIONS, jax.devices()[0].device_kind, {"xla_no_such": True})
    run, shapes = planned_run(config)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such"):
        run.step.lower(*shapes).compile()


@pytest.mark.pod
@pytest.mark.parametrize("name", ["v3-8", "v4-8", "v5e-8", "v5p-8", "v6e-8"])
def test_every_generation_of_tpu_takes_its_options(name):
    pytest.importorskip("libtpu")
    place = devices_of(topology_of(name))
    kind = place[0].device_kind
    here = NamedSharding(Mesh(place[:1], "x"), PartitionSpec())
    one = jax.ShapeDtypeStruct((8,), np.float32, sharding=here)
    jax.jit(lambda x: x + 1, compiler_options=COMPILER_OPTIONS.get(kind)).lower(one).compile()
    assert set(COMPILER_OPTIONS) <= {machine.kind for machine in GENERATIONS.values()}
