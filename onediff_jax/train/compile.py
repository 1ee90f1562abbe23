"""A run's step on a mesh: what the loop runs, and what a plan compiles where there is no device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from onediff_jax.data.batching.rows import Batch, BatchFields, Writer
from onediff_jax.data.codecs import DeviceCodec
from onediff_jax.data.example import EncodedPrompt
from onediff_jax.data.sources.cache import Cache
from onediff_jax.data.sources.shards import HALF
from onediff_jax.data.text import Tokenizer
from onediff_jax.errors import InputError
from onediff_jax.models.networks import Networks
from onediff_jax.ops.layout import Layout
from onediff_jax.sharding import batch_specs, replicated
from onediff_jax.train.encoders import networks_of, pretrained_shapes
from onediff_jax.train.run import RunConfig
from onediff_jax.train.start import state_shapes, with_sharding
from onediff_jax.train.state import State, optimizer_of, state_shardings
from onediff_jax.train.step import train_step_of

BESIDE_PRODUCTS = {"xla_enable_async_all_gather": True, "xla_enable_async_collective_permute": True}
IN_PRODUCTS = {
    "xla_enable_async_all_gather": True,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
}

# What the compiler is told beyond its defaults, by the kind of device; other kinds need nothing or
# refuse it.  What each option did, and those that did nothing: docs/design.md, "Exchanges".
COMPILER_OPTIONS: dict[str, dict[str, bool | int]] = {
    # Gathers of parameters begin before they are needed, and run beside or inside products.
    "TPU v3": BESIDE_PRODUCTS,
    "TPU v4": BESIDE_PRODUCTS,
    "TPU v5": IN_PRODUCTS,
    "TPU v6 lite": IN_PRODUCTS,
    # Products take more of the vector memory (128 MiB) than the default 16, and so read less again.
    "TPU v5 lite": {"xla_tpu_scoped_vmem_limit_kib": 32768},
}


class Placed(NamedTuple):
    """What a run needs that does not depend on its data."""

    networks: Networks
    optimizer: optax.GradientTransformation
    shardings: State
    step: Callable[..., Any]  # (state, batch, key, frozen) -> (state, metrics)


def placed(config: RunConfig, networks: Networks, layout: Layout, mesh: Mesh) -> Placed:
    """The run's optimizer, and its step, on a mesh."""
    optimizer = optimizer_of(config.optimizer, config.steps, config.tune)
    shardings = state_shardings(networks, optimizer, mesh, config.tune, config.optimizer)
    step = train_step_of(networks, optimizer, layout, config.flow, config.optimizer, shardings)
    compiled = jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(shardings, replicated(mesh)),
        compiler_options=COMPILER_OPTIONS.get(mesh.devices.flat[0].device_kind),
    )
    return Placed(networks, optimizer, shardings, compiled)


class Shapes(NamedTuple):
    """What a step takes, as shapes that say where their arrays live."""

    state: State
    batch: Batch
    key: jax.ShapeDtypeStruct
    frozen: dict[str, Any]  # parameters of the released networks that work inside the step


def planned(
    config: RunConfig, layout: Layout, mesh: Mesh, states: bool = False
) -> tuple[Placed, Shapes]:
    """The step of a run whose data is not read, and what it takes.

    A trained vocabulary has as many pieces as the configuration allows.  Released networks that are
    not here have the release's shapes.  Caches hold what `encode` writes: token
    ids, or with `states` the text encoder's states.
    """
    pieces = 0 if config.text.kind == "t5" else config.text.vocabulary
    networks = networks_of(
        config.model, config.text, config.codec, pieces, config.remat, absent=True
    )
    run = placed(config, networks, layout, mesh)
    state = state_shapes(networks, run.optimizer, run.shardings, config)
    carried = batch_fields_of(config, networks.text.config.width if states else 0)
    row = empty_row(config, networks, layout, carried)
    batch = jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(
            (config.rows, *x.shape), x.dtype, sharding=NamedSharding(mesh, spec)
        ),
        row,
        batch_specs(Batch),
    )
    key = with_sharding(jax.eval_shape(lambda: jax.random.key(0)), replicated(mesh))
    frozen = pretrained_shapes(networks, config.text, mesh, carried.encoders)
    return run, Shapes(state, batch, key, frozen)


def batch_fields_of(config: RunConfig, states: int) -> BatchFields:
    """What the run's rows carry; states of that width if it is not 0.

    Raises InputError where there would be none: of a trained encoder, or of what is not cached.
    """
    cached = [isinstance(source, Cache) for source in config.data.sources.values()]
    if states and not (config.text.kind == "t5" and all(cached)):
        raise InputError(
            f"--states is of caches, and text.kind is {config.text.kind!r} and data.sources has "
            f"{cached.count(False)} other sources; set text.kind to 't5' and encode all of them."
        )
    vae = config.codec.kind == "sd3_vae"
    return BatchFields(
        pixels=vae and not all(cached),
        deviations=vae and config.codec.posterior == "sample" and any(cached),
        empty=EncodedPrompt("", np.zeros((1, states), HALF)) if states else None,
    )


class DummyTokenizer(Tokenizer):
    """A tokenizer without a vocabulary: every prompt is as long as it may be."""

    def __init__(self, length: int):
        self.length = length

    def __call__(self, prompt: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask, of the right shape and type."""
        del prompt
        return np.zeros(self.length, np.int32), np.ones(self.length, bool)


def empty_row(config: RunConfig, networks: Networks, layout: Layout, carried: BatchFields) -> Batch:
    """A row of the run's shapes with nothing in it."""
    factor = networks.codec.factor if networks.codec else config.codec.factor
    codec = DeviceCodec(factor, config.model.channels)
    tokenizer = DummyTokenizer(config.text.length)
    return Writer(layout, codec, config.model.patch, tokenizer, carried).row
