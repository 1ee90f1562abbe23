"""The objective: flow matching with a noise level of its own for every view.

    (1)  x_sigma = (1 - sigma) x + sigma eps               sigma from 0, clean, to 1, noise
    (2)  v = d x_sigma / d sigma = eps - x                 what the network predicts
    (3)  sigma = a s / (1 + (a - 1) s), s = sigmoid(N)     logit-normal (SD3), shifted by a
    (4)  loss = sum_t w_t |v_theta - v|_t^2 / (p sum w)    over all tokens t of the global batch

A view's role (condition or target) exists only when sampling: as published, the loss covers all
views, conditions included.  Views that `FlowConfig.clean` keeps clean are left out: their target
eps - x contains noise that the input does not show.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from onediff_jax.ops.dims import ExampleOfView, Patches, Sigmas, TokenMask
from onediff_jax.ops.layout import Layout
from onediff_jax.settings import Section, setting

BALANCES = ("token", "example")
DISTRIBUTIONS = ("logit_normal", "uniform")


@dataclasses.dataclass(frozen=True)
class FlowConfig(Section):
    """How noise levels are drawn and errors weighed."""

    distribution: str = setting(
        "logit_normal", "of s in (3); logit_normal as published", choices=DISTRIBUTIONS
    )
    mean: float = setting(0.0, "logit_normal: of the normal under the sigmoid of (3)")
    std: float = setting(1.0, "logit_normal: of the same normal", above=0)
    shift: float = setting(3.0, "a of (3); 1 leaves the draw as it is", above=0)
    balance: str = setting("token", "what has equal weight in the loss", choices=BALANCES)
    clean: float = setting(
        0.0, "share of examples in which some views are clean, like conditions", least=0, most=1
    )
    clean_sigma: float = setting(
        0.06,
        "the network is told a noise level for these, uniform below this",
        least=0,
        below=1,
    )
    task_weights: Mapping[str, float] = setting(
        {}, "name of a task -> factor of its loss, by default 1", above=0
    )


def shift(
    sigma: Float[Array | np.ndarray, "*any"], factor: Float[Array, ""] | float
) -> Float[Array | np.ndarray, "*any"]:
    """Equation (3) without the draw: sigma moved towards noise where `factor` exceeds 1."""
    return factor * sigma / (1 + (factor - 1) * sigma)


def interpolate(x: Float[Array, "*any"], noise: Float[Array, "*any"], sigma: Float[Array, "*#any"]):
    """x_sigma and its velocity, equations (1) and (2)."""
    return (1 - sigma) * x + sigma * noise, noise - x


def draw(
    key: Key[Array, ""], rows: Int[Array, " b"], layout: Layout, patch: int, config: FlowConfig
) -> tuple[Sigmas, Patches]:
    """Noise levels of all views and standard normal noise for all tokens of the run's given rows.

    Both depend on (key, global row, place in the row) alone: not on the step, the device or the
    microbatch.
    """

    def draw_row(row):
        for_sigma, for_noise = jax.random.split(jax.random.fold_in(key, row))
        if config.distribution == "uniform":
            drawn = jax.random.uniform(for_sigma, (layout.views,))
        else:
            normal = config.mean + config.std * jax.random.normal(for_sigma, (layout.views,))
            drawn = jax.nn.sigmoid(normal)
        return shift(drawn, config.shift), jax.random.normal(for_noise, (layout.tokens, patch))

    return jax.vmap(draw_row)(rows)


def clean_views(
    key: Key[Array, ""],
    rows: Int[Array, " b"],
    example_of_view: ExampleOfView,
    layout: Layout,
    config: FlowConfig,
) -> tuple[Bool[Array, "b v"], Sigmas]:
    """Which views stay clean, and the noise level that the network is told for them.

    In a share `config.clean` of the examples with several views, at least one view and at most all
    but one are clean.  Their number and choice are uniform, since any view can be a condition when
    sampling.  Clean views have latents without noise, and those of an example share one level, as
    when sampling.  Depends only on (key, global row, place in the row).
    """
    if not config.clean:
        return jnp.zeros(example_of_view.shape, bool), jnp.zeros(example_of_view.shape)

    def draw_row(row, example):
        own = jax.random.fold_in(jax.random.fold_in(key, row), 3)  # `posterior_noise` has used 2
        for_examples, for_views = jax.random.split(own)
        happens, share, level = jax.random.uniform(for_examples, (3, layout.examples))[
            :, jnp.maximum(example, 0)
        ]
        order = jax.random.uniform(for_views, (layout.views,))
        together = (example[:, None] == example) & (example >= 0)
        views = together.sum(1)
        rank = (together & (order < order[:, None])).sum(1)
        count = 1 + jnp.minimum(jnp.floor(share * (views - 1)), views - 2)
        clean = (happens < config.clean) & (views > 1) & (rank < count)
        return clean, config.clean_sigma * level

    return jax.vmap(draw_row)(rows, example_of_view)


def posterior_noise(
    key: Key[Array, ""], rows: Int[Array, " b"], layout: Layout, patch: int
) -> Patches:
    """Standard normal noise by which a codec's latents are drawn, independent of that of `draw`."""

    def draw_row(row):
        own = jax.random.fold_in(jax.random.fold_in(key, row), 2)  # `draw` has used 0 and 1
        return jax.random.normal(own, (layout.tokens, patch))

    return jax.vmap(draw_row)(rows)


def token_weights(
    token_mask: TokenMask, example_of_view: ExampleOfView, layout: Layout, balance: str
) -> Float[Array, "b n"]:
    """w of equation (4): 0 on padding; where `balance` is "example", each example's sum is 1."""
    valid = token_mask.astype(jnp.float32)
    if balance == "token":
        return valid
    example_of_token = example_of_view[:, layout.view_of_token]
    belongs = jax.nn.one_hot(example_of_token, layout.examples)  # b n e; all zero where empty
    tokens_of_example = jnp.einsum("bn,bne->be", valid, belongs)
    return valid * jnp.einsum("bne,be->bn", belongs, 1 / jnp.maximum(tokens_of_example, 1))


def squared_errors(predicted: Patches, velocity: Patches) -> Float[Array, "b n"]:
    """Mean over features of every token's squared error, float32."""
    return jnp.mean(jnp.square(predicted.astype(jnp.float32) - velocity.astype(jnp.float32)), -1)
