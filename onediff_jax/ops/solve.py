"""Sampling: the differential equation dx/dsigma = v(x, sigma), from sigma 1 (noise) to 0 (clean).

A velocity is a function (x, sigma) -> v with sigma a scalar.  `hold` and `guide` make velocities
out of velocities or their values; `solve` walks them.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from onediff_jax.errors import InputError
from onediff_jax.ops.dims import Patches, Sigmas
from onediff_jax.ops.flow import shift

Velocity = Callable[[Array, Array], Array]


def schedule(steps: int, factor: float = 1.0) -> Float[np.ndarray, " {steps}+1"]:
    """Noise levels 1 = s_0 > ... > s_steps = 0.

    Evenly spaced down to 1/steps, shifted by `factor`, then 0.
    """
    if steps < 1:
        raise InputError(f"Sampling needs at least 1 step, got {steps}.")
    return np.append(shift(np.linspace(1, 1 / steps, steps), factor), 0.0).astype(np.float32)


def resolution_shift(tokens: int, base: float = 0.5, most: float = 1.15) -> float:
    """Shift factor e^mu for `tokens` tokens to denoise.

    mu runs from `base` at 256 tokens to `most` at 4096, unclipped, as in FLUX.1 and the released
    pipeline: more tokens, more shift.
    """
    return math.exp(base + (most - base) * (tokens - 256) / (4096 - 256))


def guide(
    unconditional: Float[Array, "*any"], conditional: Float[Array, "*any"], scale: float
) -> Float[Array, "*any"]:
    """Classifier-free guidance: v_u + scale (v_c - v_u)."""
    return unconditional + scale * (conditional - unconditional)


def hold(
    velocity: Callable[[Patches, Sigmas], Patches],
    wanted_views: Bool[Array, "b v"],
    wanted_tokens: Bool[Array, "b n"],
    sigma_given: Float[Array, ""] | float,
) -> Velocity:
    """A velocity that moves wanted views only.

    The network is shown the given ones at noise level `sigma_given`.
    """

    def held(x, sigma):
        moving = velocity(x, jnp.where(wanted_views, sigma, sigma_given))
        return jnp.where(wanted_tokens[..., None], moving, 0)

    return held


def euler(velocity: Velocity, x: Array, sigma: Array, following: Array) -> Array:
    """One step of Euler's method, first order."""
    return x + (following - sigma) * velocity(x, sigma)


def heun(velocity: Velocity, x: Array, sigma: Array, following: Array) -> Array:
    """One step of Heun's method, second order; Euler's into sigma 0, which training hardly saw."""
    v = velocity(x, sigma)
    first = x + (following - sigma) * v

    def corrected():
        return x + (following - sigma) * (v + velocity(first, following)) / 2

    return jax.lax.cond(following > 0, corrected, lambda: first)


METHODS = {"euler": euler, "heun": heun}


def solve(
    velocity: Velocity, x: Float[Array, "*any"], sigmas: Float[Array, " s"], method: str = "euler"
) -> Float[Array, "*any"]:
    """Where `x`, noise of level sigmas[0], ends when it follows `velocity` through all `sigmas`."""
    step = METHODS[method]

    def walk(x, pair):
        return step(velocity, x, *pair), None

    return jax.lax.scan(walk, x, (sigmas[:-1], sigmas[1:]))[0]
