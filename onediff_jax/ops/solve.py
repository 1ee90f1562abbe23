"""Sampling: the differential equation dx/dsigma = v(x, sigma), from sigma 1 (noise) to 0 (clean).

A velocity is a function (x, sigma) -> v with sigma a scalar.  `hold` and `guide` make velocities
out of velocities or their values; `solve` walks them.
"""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Noise levels by diffusers' FlowMatchEulerDiscreteScheduler, whose names the settings have.

    The defaults are FLUX.1's, which the released pipeline's formula for the shift has as its own:
    a dynamic shift that grows with the number of tokens, without a clip.
    """

    shift: float = 3.0  # factor of the shift that is not dynamic
    use_dynamic_shifting: bool = True
    base_shift: float = 0.5  # mu at base_image_seq_len tokens
    max_shift: float = 1.15  # mu at max_image_seq_len tokens
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    time_shift_type: str = "exponential"  # the dynamic factor is e^mu; "linear": mu
    shift_terminal: float | None = None  # the last level before 0; None: as the shift leaves it
    spacing: str = "shifted"  # between first and last level; or "karras", "exponential"

    def __post_init__(self):
        if self.base_image_seq_len >= self.max_image_seq_len:
            raise InputError(
                f"base_image_seq_len is {self.base_image_seq_len} and max_image_seq_len "
                f"{self.max_image_seq_len}; the second must be larger."
            )

    def factor(self, tokens: float | int) -> float:
        """Of the shift, for so many target tokens."""
        if not self.use_dynamic_shifting:
            return self.shift
        slope = (self.max_shift - self.base_shift) / (
            self.max_image_seq_len - self.base_image_seq_len
        )
        mu = self.base_shift + slope * (tokens - self.base_image_seq_len)
        factor = math.exp(mu) if self.time_shift_type == "exponential" else mu
        if factor <= 0:
            raise InputError(
                f"The scheduler's linear shift is {factor:.3g} for {tokens:,.0f} tokens; it must "
                "be positive, so give a static one: --shift."
            )
        return factor

    def levels(self, steps: int, tokens: float | int) -> Float[np.ndarray, " {steps}+1"]:
        """Noise levels 1 = s_0 > ... > s_steps = 0 for so many target tokens."""
        levels = schedule(steps, self.factor(tokens))[:-1].astype(np.float64)
        if self.shift_terminal and steps > 1:
            levels = 1 - (1 - levels) * (1 - self.shift_terminal) / (1 - levels[-1])
        if self.spacing == "karras":  # arXiv 2206.00364, equation 5, rho 7
            levels = np.linspace(*levels[[0, -1]] ** (1 / 7), steps) ** 7
        if self.spacing == "exponential":
            levels = np.geomspace(*levels[[0, -1]], steps)
        return np.append(levels, 0).astype(np.float32)


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
    """A velocity that is zero for condition views.

    The network is told the noise level `sigma_given` for condition views.
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
