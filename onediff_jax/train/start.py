"""The first state of a run: random, or another run's weights under a fresh optimizer."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from onediff_jax.data.records import Source
from onediff_jax.data.sources.cache import CachedSource
from onediff_jax.errors import InputError
from onediff_jax.models.layers import LORA
from onediff_jax.models.networks import Networks
from onediff_jax.train.checkpoint import assets_of, binding_changes, described, weights
from onediff_jax.train.encoders import fingerprints_of
from onediff_jax.train.run import Assets, RunConfig, fitted_assets
from onediff_jax.train.state import State, new_state, state_of
from onediff_jax.train.tune import merged


def first_assets(
    config: RunConfig, sources: Mapping[str, Source], as_json: Mapping[str, Any]
) -> Assets:
    """Codec and vocabulary: of the checkpoint that a run starts from, of its cache, or fitted.

    Raises InputError where that checkpoint's model, text or codec settings are others; a denoiser
    alone has no text or codec.
    """
    if not config.tune.start:
        return own_assets(config, sources)
    before, assets, _ = described(config.tune.start)
    free = ("model.lora.", "tune.", "optimizer.", *(("text.", "codec.") if assets.partial else ()))
    for name, (was, now) in binding_changes(before, as_json).items():
        if not name.startswith(free):
            raise InputError(
                f"config.{name} is {now!r}, and {was!r} in {config.tune.start}, which tune.start "
                "names; set it to that."
            )
    if assets.partial:
        return own_assets(config, sources)._replace(origin=assets.origin)
    return assets


def own_assets(config: RunConfig, sources: Mapping[str, Source]) -> Assets:
    """Codec and vocabulary of a run's cache, or fitted where its sources have none."""
    caches = [source for source in sources.values() if isinstance(source, CachedSource)]
    if not caches:
        return fitted_assets(config, sources)
    fingerprints = fingerprints_of(config.text, config.codec)
    return assets_of(caches[0].assets())._replace(fingerprints=fingerprints)


def first_state(
    networks: Networks,
    optimizer: optax.GradientTransformation,
    shardings: State,
    config: RunConfig,
) -> State:
    """The state before the first step, born sharded.

    Of the weights of `tune.start` only adapters may be missing, and all but the denoiser where it
    holds a denoiser alone: they are drawn.
    """
    key, tune = jax.random.key(config.seed), config.tune
    if not tune.start:

        def drawn_state() -> State:
            return new_state(networks, optimizer, key, tune, config.optimizer)

        return jax.jit(drawn_state, out_shardings=shardings)()
    where = merged(shardings.params, shardings.frozen)
    params = nn.meta.unbox(jax.eval_shape(networks.init, key))
    flat = flatten_dict(jax.tree.map(with_sharding, params, where), sep="/")
    _, assets, _ = described(tune.start)
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
        return state_of(merged(given, others), optimizer, tune, config.optimizer)

    return jax.jit(start, out_shardings=shardings, donate_argnums=0)(given)


def state_shapes(
    networks: Networks,
    optimizer: optax.GradientTransformation,
    shardings: State,
    config: RunConfig,
) -> State:
    """Shapes, types and shardings of a run's state."""
    key, tune = jax.random.key(0), config.tune
    shapes = jax.eval_shape(lambda: new_state(networks, optimizer, key, tune, config.optimizer))
    return jax.tree.map(with_sharding, shapes, shardings)


def with_sharding(
    shape: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding
) -> jax.ShapeDtypeStruct:
    """A shape that says where its array lives."""
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
