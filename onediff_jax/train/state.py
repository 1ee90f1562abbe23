"""The state of a run: parameters, their EMA, the optimizer's moments; sharded from the start."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Integer, UInt32

from onediff_jax.errors import InputError
from onediff_jax.models.layers import LORA
from onediff_jax.models.networks import Networks
from onediff_jax.settings import FLOATS, Section, setting
from onediff_jax.sharding import check_tensor, replicated, shardings_of
from onediff_jax.train.tune import (
    EVERYTHING,
    TuneConfig,
    cast,
    merge_params,
    scaled_rates,
    split_params,
)

SCHEDULES = ("constant", "cosine", "linear")
OPTIMIZERS = ("adamw", "adafactor")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
    """The optimizer, its learning rate schedule, gradient clipping and EMA."""

    kind: str = setting(
        "adamw",
        "adafactor has no first moment, and second moments of matrices by rows and columns",
        binds="state",
        choices=OPTIMIZERS,
    )
    learning_rate: float = setting(5e-4, "after warm-up", least=0)
    schedule: str = setting(
        "constant",
        "of the learning rate after warm-up; cosine and linear reach zero at the last step",
        choices=SCHEDULES,
    )
    warmup: int = setting(1000, "steps of linear growth", least=0)
    b1: float = setting(0.9, "decay of the first moment", least=0, below=1)
    b2: float = setting(
        0.999,
        "decay of the second moment; adafactor's is min(b2, 1 - s^-0.8) at step s",
        least=0,
        below=1,
    )
    mu_dtype: str = setting("float32", "of adamw's first moment", choices=FLOATS)
    weight_decay: float = setting(0.0, "of matrices", least=0)
    clip: float = setting(
        2.0, "largest global norm of the gradient; inf: none", above=0, infinite=True
    )
    gradient_dtype: str = setting(
        "bfloat16",
        "dtype of the sum of block gradients over the shards of fsdp: float32 sends twice as many "
        "bytes, and is used if model.dtype is float32",
        choices=FLOATS,
    )
    accumulate: int = setting(1, "parts that a batch is worked through in", least=1)
    ema: float = setting(
        0.9999,
        "decay of the parameters' EMA, at step s min(ema, (1 + s) / (10 + s)); 0: no EMA",
        binds="state",
        least=0,
        below=1,
    )
    ema_dtype: str = setting(
        "float32",
        "of the EMA's matrices; bfloat16: rounded stochastically, half the memory",
        choices=FLOATS,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.kind == "adafactor" and self.mu_dtype != "float32":
            raise InputError(
                f"optimizer.mu_dtype is {self.mu_dtype!r}, and optimizer.kind is 'adafactor', "
                "which has no first moment; leave optimizer.mu_dtype at 'float32'."
            )


ADAMW = OptimizerConfig()


class State(NamedTuple):
    """Everything that a step changes.

    Keys never live here: they are functions of the seed and the row.
    """

    step: Int[Array, ""]
    params: Any  # trained parameters
    ema: Any  # EMA of params; {} if none is kept
    moments: optax.OptState
    untrained: Any  # parameters that training does not change

    @property
    def weights(self) -> dict:
        """All parameters for evaluation: the EMA, if one is kept, and the untrained parameters."""
        return merge_params(self.ema or self.params, self.untrained)


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
    """Clipping, then AdamW or Adafactor, then the parameters' own factors.

    Weight decay touches matrices alone and is multiplied by the learning rate.
    """

    def matrices(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(is_matrix, params)

    rate, decay = learning_rate_of(config, steps), config.weight_decay
    if config.kind == "adafactor":
        optimizer = optax.chain(
            optax.scale_by_factored_rms(
                decay_rate_fn=lambda s, power: jnp.minimum(config.b2, 1 - (s + 1.0) ** -power)
            ),
            clipped_matrices(),
            optax.add_decayed_weights(decay, matrices),
            optax.scale_by_learning_rate(rate),
        )
    else:
        optimizer = optax.adamw(
            rate,
            b1=config.b1,
            b2=config.b2,
            mu_dtype=config.mu_dtype,
            weight_decay=decay,
            mask=matrices,
        )
    return optax.chain(optax.clip_by_global_norm(config.clip), optimizer, scaled_rates(tune))


def clipped_matrices(threshold: float = 1.0) -> optax.GradientTransformation:
    """Updates scaled down to an RMS of `threshold`: each array, and each layer of a stack, alone.

    Adafactor's update clipping (arXiv 1804.04235, section 6).
    """

    def clip(path: tuple, update: Any) -> Any:
        stacked = any(key.key == "layers" for key in path)
        square = jnp.mean(jnp.square(update), range(stacked, update.ndim), keepdims=True)
        return update / jnp.maximum(1.0, jnp.sqrt(square) / threshold)

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(clip, updates))


def is_matrix(path: tuple, leaf: Any) -> bool:
    """Whether a parameter is the matrix of a matmul, not a bias, gate, norm or embedding."""
    del leaf
    return path[-1].key in ("kernel", *LORA)


def updated_ema(ema: Any, params: Any, step: Int[Array, ""], decay: float) -> Any:
    """The EMA after a step, with decay min(decay, (1 + s) / (10 + s)) at s = `step`.

    As diffusers' EMAModel without warm-up.  Arrays in bfloat16 are rounded stochastically: most
    increments are less than half of the bfloat16 spacing, and rounding to nearest would lose them.
    """
    s = step.astype(jnp.float32)
    kept = jnp.minimum(decay, (1 + s) / (10 + s))
    moved = jax.tree.map(lambda e, p: kept * e + (1 - kept) * p, ema, params)
    leaves, structure = jax.tree.flatten(moved)
    types = [jnp.result_type(leaf) for leaf in jax.tree.leaves(ema)]
    for i, dtype in enumerate(types):
        if dtype == jnp.bfloat16:
            leaves[i] = stochastically_rounded(leaves[i], random_bits(step * len(types) + i))
    return jax.tree.unflatten(structure, leaves)


def stochastically_rounded(x: Float[Array, "*any"], seed: UInt32[Array, ""]) -> Array:
    """float32 numbers in bfloat16: one of the two neighbours, so that the expectation is `x`.

    A function of the seed and an element's index, so that no mesh changes it; and elementwise, so
    that it costs no memory, which the bits of `jax.random` would.
    """
    index = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(x.shape):
        index = index * size + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + (random_bits(index ^ seed) >> 16)
    bits = jnp.where(jnp.isfinite(x), bits, jax.lax.bitcast_convert_type(x, jnp.uint32))
    upper = (bits >> 16).astype(jnp.uint16)
    return jax.lax.bitcast_convert_type(upper, jnp.bfloat16)


def random_bits(x: Integer[Array, "*any"]) -> UInt32[Array, "*any"]:
    """Integers whose bits look random: Wellons' lowbias32 (nullprogram.com/blog/2018/07/31)."""
    x = jnp.asarray(x).astype(jnp.uint32)
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def first_ema(params: Any, config: OptimizerConfig) -> Any:
    """The EMA before the first step: the parameters, matrices in their own type; {} for none."""

    def first(path: tuple, param: Any) -> Any:
        return param.astype(config.ema_dtype) if is_matrix(path, param) else param

    return jax.tree_util.tree_map_with_path(first, params) if config.ema else {}


def new_state(
    networks: Networks,
    optimizer: optax.GradientTransformation,
    key: Array,
    tune: TuneConfig = EVERYTHING,
    config: OptimizerConfig = ADAMW,
) -> State:
    """The state before the first step, of random parameters."""
    return state_of(nn.meta.unbox(networks.init(key)), optimizer, tune, config)


def state_of(
    params: Any,
    optimizer: optax.GradientTransformation,
    tune: TuneConfig,
    config: OptimizerConfig = ADAMW,
) -> State:
    """The state before the first step, of given parameters."""
    params, untrained = split_params(params, tune)
    step, ema = jnp.zeros((), jnp.int32), first_ema(params, config)
    return State(step, params, ema, optimizer.init(params), cast(untrained, tune))


def state_shardings(
    networks: Networks,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    tune: TuneConfig = EVERYTHING,
    config: OptimizerConfig = ADAMW,
) -> State:
    """A sharding for every array; EMA and moments are sharded as their parameters.

    Moments of another shape than their parameters', which are Adafactor's sums over rows and
    columns, are whole on every device.  Raises InputError where the mesh does not divide the
    networks.
    """
    check_tensor(networks.split_sizes, mesh.shape["tensor"])
    boxed = jax.eval_shape(networks.init, jax.random.key(0))
    shapes, _ = split_params(nn.meta.unbox(boxed), tune)
    params, untrained = split_params(shardings_of(boxed, mesh), tune)
    moments = jax.eval_shape(optimizer.init, shapes)
    whole = replicated(mesh)
    moments = optax.tree_map_params(
        optimizer,
        lambda moment, sharding, param: sharding if moment.shape == param.shape else whole,
        moments,
        params,
        shapes,
        transform_non_params=lambda _: whole,
    )
    ema = params if config.ema else {}
    return State(whole, params, ema, moments, untrained)  # type: ignore[arg-type]  # of shardings


def parameter_count(params: Any) -> int:
    """The number of elements of all arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
