"""The state of a run: parameters, their moving average, the optimizer's moments; born sharded."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from onediff_jax.errors import InputError
from onediff_jax.models.layers import LORA
from onediff_jax.models.networks import Networks
from onediff_jax.sharding import check_tensor, replicated, shardings_of
from onediff_jax.train.tune import EVERYTHING, TuneConfig, cast, merged, parted, scaled_rates

SCHEDULES = ("constant", "cosine", "linear")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and what surrounds it."""

    learning_rate: float = 5e-4
    schedule: str = (
        "constant"  # after warm-up: constant, or cosine or linear down to zero at the last step
    )
    warmup: int = 1000  # steps of linear growth
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0  # of matrices
    clip: float = 2.0  # of the gradient's global norm
    accumulate: int = 1  # parts that a batch is worked through in
    ema: float = 0.9999  # decay of the moving average, less early on: min(ema, (1 + s) / (10 + s))

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise InputError(
                f"optimizer.schedule is {self.schedule!r}; it can be {', '.join(SCHEDULES)}."
            )
        if self.accumulate < 1:
            raise InputError(f"optimizer.accumulate is {self.accumulate}; it must be at least 1.")


class State(NamedTuple):
    """Everything that a step changes.

    Keys never live here: they are functions of the seed and the row.
    """

    step: Int[Array, ""]
    params: Any  # those that are trained
    ema: Any
    moments: optax.OptState
    frozen: Any  # parameters that stay as they are

    @property
    def weights(self) -> dict:
        """All parameters, by their moving average where they are trained."""
        return merged(self.ema, self.frozen)


def learning_rate_of(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then the schedule."""
    left = max(steps - config.warmup, 1)
    after = {
        "constant": optax.constant_schedule(config.learning_rate),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, left),
        "linear": optax.linear_schedule(config.learning_rate, 0.0, left),
    }[config.schedule]
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup)
    return optax.join_schedules([warmup, after], [config.warmup])


def optimizer_of(
    config: OptimizerConfig, steps: int, tune: TuneConfig = EVERYTHING
) -> optax.GradientTransformation:
    """Clipping, then AdamW whose decay touches matrices alone, then the parameters' own factors."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            learning_rate_of(config, steps),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree_util.tree_map_with_path(is_matrix, params),
        ),
        scaled_rates(tune),
    )


def is_matrix(path: tuple, leaf: Any) -> bool:
    """Whether a parameter is a matrix of products, not a bias, a gate, a norm or an embedding."""
    del leaf
    return path[-1].key in ("kernel", *LORA)


def moved_average(ema: Any, params: Any, step: Int[Array, ""], decay: float) -> Any:
    """The moving average after a step, with decay min(decay, (1 + s) / (10 + s)) at s = `step`.

    As diffusers' EMAModel without warm-up.
    """
    s = step.astype(jnp.float32)
    kept = jnp.minimum(decay, (1 + s) / (10 + s))
    return jax.tree.map(lambda e, p: kept * e + (1 - kept) * p, ema, params)


def new_state(
    networks: Networks,
    optimizer: optax.GradientTransformation,
    key: Array,
    tune: TuneConfig = EVERYTHING,
) -> State:
    """The state before the first step, of random parameters."""
    return state_of(nn.meta.unbox(networks.init(key)), optimizer, tune)


def state_of(params: Any, optimizer: optax.GradientTransformation, tune: TuneConfig) -> State:
    """The state before the first step, of given parameters."""
    params, frozen = parted(params, tune)
    step = jnp.zeros((), jnp.int32)
    return State(step, params, params, optimizer.init(params), cast(frozen, tune))


def state_shardings(
    networks: Networks,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    tune: TuneConfig = EVERYTHING,
) -> State:
    """A sharding for every array; moments and average lie where their parameters lie.

    Raises InputError where the mesh does not divide the networks.
    """
    check_tensor(networks.split_sizes, mesh.shape["tensor"])
    boxed = jax.eval_shape(networks.init, jax.random.key(0))
    shapes, _ = parted(nn.meta.unbox(boxed), tune)
    params, frozen = parted(shardings_of(boxed, mesh), tune)
    moments = jax.eval_shape(optimizer.init, shapes)
    whole = replicated(mesh)
    moments = optax.tree_map_params(
        optimizer, lambda _, s: s, moments, params, transform_non_params=lambda _: whole
    )
    return State(whole, params, params, moments, frozen)


def parameters(params: Any) -> int:
    """How many numbers are trained."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
