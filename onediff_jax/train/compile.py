"""A run's step and state on its mesh, which the loop runs and a plan compiles."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding

from onediff_jax.data.batching.loader import batch_fields_of
from onediff_jax.data.batching.rows import Batch, Writer
from onediff_jax.data.codecs import DeviceCodec, LinearCodec
from onediff_jax.data.example import EncodedPrompt, Record
from onediff_jax.data.records import Source
from onediff_jax.data.sources.arrayrecord import BFLOAT16
from onediff_jax.data.sources.cache import Cache, CachedSource
from onediff_jax.data.text import Tokenizer
from onediff_jax.errors import InputError
from onediff_jax.models.layers import LORA
from onediff_jax.models.networks import Networks
from onediff_jax.sharding import batch_specs, replicated
from onediff_jax.train.checkpoint import saved_run, weights
from onediff_jax.train.config import RunConfig
from onediff_jax.train.encoders import pretrained_shapes
from onediff_jax.train.prepare import Prepared
from onediff_jax.train.state import State, new_state, optimizer_of, state_of, state_shardings
from onediff_jax.train.step import train_step_of
from onediff_jax.train.tune import merge_params

BESIDE_MATMULS: dict[str, bool | int] = {
    "xla_enable_async_all_gather": True,
    "xla_enable_async_collective_permute": True,
}
IN_MATMULS: dict[str, bool | int] = {
    "xla_enable_async_all_gather": True,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
}

# XLA options by the kind of device; other kinds need none or refuse them.  docs/log.md has the
# effect of each, and those that changed nothing.
COMPILER_OPTIONS: dict[str, dict[str, bool | int]] = {
    # All-gathers of parameters are asynchronous, and overlap with matmuls or run inside them.
    "TPU v3": BESIDE_MATMULS,
    "TPU v4": BESIDE_MATMULS,
    "TPU v5": IN_MATMULS,
    "TPU v6 lite": IN_MATMULS,
    # 32 MiB of VMEM for matmuls (default 16 of 128): operands are re-read less.
    "TPU v5 lite": {"xla_tpu_scoped_vmem_limit_kib": 32768},
}


class CompiledStep(NamedTuple):
    """The step of a run on its mesh, and what it updates parameters by."""

    networks: Networks
    optimizer: optax.GradientTransformation
    shardings: State
    step: Callable[..., Any]  # (state, batch, key, pretrained) -> (state, metrics)


def compiled_step(run: Prepared) -> CompiledStep:
    """The step of a run, which XLA compiles when it is first called."""
    config, networks = run.config, run.networks
    optimizer = optimizer_of(config.optimizer, config.steps, config.tune)
    shardings = state_shardings(networks, optimizer, run.mesh, config.tune, config.optimizer)
    step = train_step_of(networks, optimizer, run.layout, config.flow, config.optimizer, shardings)
    jitted = jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(shardings, replicated(run.mesh)),
        compiler_options=COMPILER_OPTIONS.get(run.mesh.devices.flat[0].device_kind),
    )
    return CompiledStep(networks, optimizer, shardings, jitted)


def first_state(compiled: CompiledStep, config: RunConfig) -> State:
    """The state before the first step, sharded from the start.

    Of the weights of `tune.start` only adapters may be missing, and all but the denoiser where it
    holds a denoiser alone: they are drawn.
    """
    networks, optimizer, shardings, _ = compiled
    key, tune = jax.random.key(config.seed), config.tune
    if not tune.start:

        def drawn_state() -> State:
            return new_state(networks, optimizer, key, tune, config.optimizer)

        return jax.jit(drawn_state, out_shardings=shardings)()
    where = merge_params(shardings.params, shardings.untrained)
    params = nn.meta.unbox(jax.eval_shape(networks.init, key))
    flat = flatten_dict(jax.tree.map(with_sharding, params, where), sep="/")
    _, assets, _ = saved_run(tune.start)
    fresh = {
        name
        for name in flat
        if name.rsplit("/", 1)[-1] in LORA or (assets.partial and not name.startswith("denoiser/"))
    }
    given = unflatten_dict({n: s for n, s in flat.items() if n not in fresh}, sep="/")
    given = weights(tune.start, given, tune.weights, config.root)

    def start(given: Any) -> State:
        drawn = flatten_dict(nn.meta.unbox(networks.init(key)), sep="/")
        others = unflatten_dict({name: drawn[name] for name in fresh}, sep="/")
        return state_of(merge_params(given, others), optimizer, tune, config.optimizer)

    return jax.jit(start, out_shardings=shardings, donate_argnums=0)(given)


def state_shapes(compiled: CompiledStep, config: RunConfig) -> State:
    """Shapes, types and shardings of a run's state."""
    networks, optimizer, shardings, _ = compiled
    key, tune = jax.random.key(0), config.tune
    shapes = jax.eval_shape(lambda: new_state(networks, optimizer, key, tune, config.optimizer))
    return jax.tree.map(with_sharding, shapes, shardings)


def with_sharding(
    shape: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding
) -> jax.ShapeDtypeStruct:
    """A shape with the sharding of its array."""
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


class Shapes(NamedTuple):
    """The arguments of a step, as shapes with shardings."""

    state: State
    batch: Batch
    key: jax.ShapeDtypeStruct
    pretrained: dict[str, Any]  # parameters of the pretrained networks inside the step


def planned_step(run: Prepared, states: bool = False) -> tuple[CompiledStep, Shapes]:
    """The step of a run whose data is not read, and the shapes of its arguments.

    Caches hold what `encode` writes: token ids, or with `states` the text
    encoder's states.  Raises InputError where there would be none: of a trained encoder, or of
    what is not cached.
    """
    config, networks, mesh = run.config, run.networks, run.mesh
    cached = [isinstance(source, Cache) for source in config.data.sources.values()]
    if states and not (config.text.kind == "t5" and all(cached)):
        raise InputError(
            f"--states is of caches, and text.kind is {config.text.kind!r} and data.sources has "
            f"{cached.count(False)} other sources; set text.kind to 't5' and encode all of them."
        )
    compiled = compiled_step(run)
    sources, codec = unread_sources(run, states), unread_codec(run)
    fields = batch_fields_of(sources, codec, config.codec.posterior == "sample", 0.0)
    tokenizer = DummyTokenizer(config.text.length)
    row = Writer(run.layout, codec, config.model.patch, tokenizer, fields).row
    batch = jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(
            (config.rows, *x.shape), x.dtype, sharding=NamedSharding(mesh, spec)
        ),
        row,
        batch_specs(Batch),
    )
    key = with_sharding(jax.eval_shape(lambda: jax.random.key(0)), replicated(mesh))
    pretrained = pretrained_shapes(networks, config.text, mesh, fields.encoders)
    return compiled, Shapes(state_shapes(compiled, config), batch, key, pretrained)


class DummyTokenizer(Tokenizer):
    """A tokenizer without a vocabulary: every prompt is as long as it may be."""

    def __init__(self, length: int):
        self.length = length

    def __call__(self, prompt: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask, of the right shape and type."""
        del prompt
        return np.zeros(self.length, np.int32), np.ones(self.length, bool)


class UnreadRecords(Source):
    """Records of which nothing is read."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Record:
        raise IndexError(index)


class UnreadCache(CachedSource):
    """A cache of which nothing is read; prompts are ids if their states have no width."""

    empty = EncodedPrompt("", np.zeros((1, 0), BFLOAT16))
    holds_states = holds_deviations = False

    def __init__(self, deviations: bool, width: int):
        self.holds_deviations, self.holds_states = deviations, width > 0
        self.empty = EncodedPrompt("", np.zeros((1, width), BFLOAT16))


def unread_sources(run: Prepared, states: bool) -> dict[str, Source]:
    """Sources that carry what the run's would, without records."""
    width = run.networks.text.config.width if states else 0
    cache = UnreadCache(run.networks.codec is not None, width)
    settings = run.config.data.sources
    return {
        name: cache if isinstance(settings[name], Cache) else UnreadRecords() for name in settings
    }


def unread_codec(run: Prepared) -> LinearCodec | DeviceCodec:
    """A codec of the run's kind and shape, without parameters."""
    channels = run.config.model.channels
    if run.networks.codec:
        return DeviceCodec(run.networks.codec.factor, channels)
    pixels = 3 * run.config.codec.factor**2
    empty = (
        np.zeros(shape, np.float32) for shape in (pixels, (pixels, channels), (channels, pixels))
    )
    return LinearCodec(*empty)
