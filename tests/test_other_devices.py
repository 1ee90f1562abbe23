"""The released size on devices that are not here: lowered for NVIDIA GPUs, compiled for TPUs.

The complete step with T5-XL and the autoencoder inside, sampling, and both sides of the
autoencoder, at the widths of the release.
"""

import functools
import runpy

import jax
import jax.numpy as jnp
import pytest
from flax.core import meta
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from places import ROOT

from onediff_jax.ops import device
from onediff_jax.ops.layout import Layout, Slot
from onediff_jax.plan.topologies import devices_of, topologies
from onediff_jax.sampling import generate
from onediff_jax.sharding import MeshConfig, mesh_of, shardings_of
from onediff_jax.train.compile import planned_step, with_sharding
from onediff_jax.train.config import run_config
from onediff_jax.train.prepare import prepare

CONFIGS = ROOT / "configs"
H100 = "NVIDIA H100 80GB HBM3"
PROGRAMS = ("step", "sample", "encode", "decode")


def config_of(rows: int, **changes):
    """Fine-tuning of everything, images and prompts encoded inside the step."""
    settings = runpy.run_path(str(CONFIGS / "finetune.py"))["get_config"]()
    settings.rows = rows
    settings.update_from_flattened_dict(changes)
    return run_config(settings)


def program_of(name, config, mesh):
    """A jitted function, and what it takes: shapes that say where their arrays live."""
    run, shapes = planned_step(prepare(config, devices=list(mesh.devices.flat), absent=True))
    networks = run.networks
    if name == "step":
        return run.step, shapes

    def shape(*sizes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, P()))

    boxed = jax.eval_shape(networks.init_pretrained, jax.random.key(0))["codec"]
    codec = jax.tree.map(with_sharding, meta.unbox(boxed), shardings_of(boxed, mesh))
    if name == "encode":
        images = shape(2, 512, 512, 3, dtype=jnp.uint8)
        call = functools.partial(generate.encoded_moments, networks.codec)
        return jax.jit(call), (codec, images)
    if name == "decode":
        call = functools.partial(generate.decoded_pixels, networks.codec)
        return jax.jit(call), (codec, shape(2, 64, 64, 16))
    layout, b, length = Layout((Slot(2, 1024),)), config.rows, config.text.length
    params = {"denoiser": shapes.state.params["denoiser"], "text": shapes.pretrained["text"]}
    arguments = (
        shape(b, layout.tokens, networks.denoiser.config.features),
        shape(b, 2, 1, length, dtype=jnp.int32),
        shape(b, 2, 1, length, dtype=bool),
        shape(b, dtype=jnp.int32),
        shape(layout.tokens, 3, dtype=jnp.int32),
        shape(layout.views, dtype=bool),
        shape(config.evaluate.sample.steps + 1),
        with_sharding(jax.eval_shape(lambda: jax.random.key(0)), NamedSharding(mesh, P())),
    )
    sample = generate.sampled_patches
    call = functools.partial(sample, networks, mesh, layout, config.evaluate.sample)
    return jax.jit(call), (params, *arguments)


FLOAT32 = {"model.dtype": "float32", "codec.dtype": "float32", "text.dtype": "float32"}


@pytest.mark.parametrize(
    ("program", "changes"),
    [
        *((program, {}) for program in PROGRAMS),
        ("step", {"text.length": 77}),
        ("step", FLOAT32),
        ("encode", FLOAT32),
        ("step", {"model.attention": "triton"}),
    ],
)
def test_the_released_size_is_lowered_for_nvidia_gpus(program, changes, monkeypatch):
    monkeypatch.setattr(device, "kind", lambda: H100)
    mesh = mesh_of(MeshConfig(), jax.devices()[:1])
    call, arguments = program_of(program, config_of(1, **changes), mesh)
    text = call.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    kernels = text.count("__gpu$xla.gpu.triton")
    assert kernels > 0 if changes.get("model.attention") == "triton" else kernels == 0


@pytest.mark.pod
@pytest.mark.slow  # half a minute to four minutes each
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("generation", ["v3", "v4", "v5e", "v5p", "v6e"])
def test_the_released_size_compiles_for_the_smallest_slice(program, generation, monkeypatch):
    """Four devices, of v3 eight; whether they have room for it is not asked."""
    pytest.importorskip("libtpu")
    slices = [t for t in topologies().values() if t.shape.startswith(f"{generation}:")]
    smallest = min(slices, key=lambda t: t.devices)
    if program in ("encode", "decode"):  # they are traced outside of the mesh
        monkeypatch.setattr(device, "kind", lambda: smallest.generation.kind)
    devices = devices_of(smallest)
    mesh = mesh_of(MeshConfig(data=1, fsdp=len(devices)), devices)
    with jax.default_matmul_precision("default"):
        call, arguments = program_of(program, config_of(len(devices)), mesh)
        try:
            call.lower(*arguments).compile()
        except jax.errors.JaxRuntimeError as error:
            assert "memory" in str(error), error
