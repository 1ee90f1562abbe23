"""Fine-tuning: what a run starts from, which parameters it trains, and how fast.

Parameters are named by their path, such as "denoiser/layers/attention/wq/kernel"; a pattern is a
name with wildcards, where * matches any text.
"""

import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from onediff_jax.errors import InputError
from onediff_jax.paths import Location
from onediff_jax.settings import FLOATS, Section, setting

WEIGHT_KINDS = ("ema", "params")


@dataclasses.dataclass(frozen=True)
class TuneConfig(Section):
    """What a new run starts from, and which parameters it trains."""

    start: Location = setting(
        "", "checkpoint whose weights a new run begins with; empty: random ones", binds="state"
    )
    weights: str = setting(
        "ema",
        "of that checkpoint: ema, or params as they were trained",
        binds="state",
        choices=WEIGHT_KINDS,
    )
    train: tuple[str, ...] = setting(
        ("*",), "patterns of the parameters to train; others stay as they are", binds="state"
    )
    rates: Mapping[str, float] = setting(
        {}, "pattern -> factor of the learning rate; the first that matches counts"
    )
    frozen_dtype: str = setting("float32", "of parameters that are not trained", choices=FLOATS)

    def trains(self, name: str) -> bool:
        """Whether a parameter is trained."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.train)

    def rate(self, name: str) -> float:
        """The factor of a parameter's learning rate."""
        matching = (f for pattern, f in self.rates.items() if fnmatch.fnmatchcase(name, pattern))
        return next(matching, 1.0)


EVERYTHING = TuneConfig()


def split_params(params: Any, config: TuneConfig) -> tuple[dict, dict]:
    """The parameters that are trained, and those that stay as they are in their own type.

    Raises InputError for a pattern that no parameter matches.
    """
    flat = flatten_dict(params, sep="/")
    for name, patterns in (("train", config.train), ("rates", config.rates)):
        for pattern in patterns:
            if not fnmatch.filter(flat, pattern):
                raise InputError(
                    f"tune.{name} has {pattern!r}, which matches no parameter; their names are "
                    f"such as {', '.join(sorted(flat)[:: max(len(flat) // 4, 1)])}."
                )
    trained = {name: value for name, value in flat.items() if config.trains(name)}
    if not trained:
        raise InputError("tune.train is empty; give it a pattern, such as '*'.")
    untrained = {name: value for name, value in flat.items() if name not in trained}
    return unflatten_dict(trained, sep="/"), unflatten_dict(untrained, sep="/")


def merge_params(trained: Mapping, untrained: Mapping) -> dict:
    """All parameters: the inverse of `split_params`."""
    flat = flatten_dict(trained, sep="/") | flatten_dict(untrained, sep="/")
    return unflatten_dict(flat, sep="/")


def cast(untrained: Any, config: TuneConfig) -> Any:
    """Parameters that are not trained, in the type that the settings give them."""
    return jax.tree.map(lambda x: x.astype(jnp.dtype(config.frozen_dtype)), untrained)


def scaled_rates(config: TuneConfig) -> optax.GradientTransformation:
    """Updates times their parameters' factors."""

    def scale(path: tuple, update: Any) -> Any:
        return update * config.rate("/".join(key.key for key in path))

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))
