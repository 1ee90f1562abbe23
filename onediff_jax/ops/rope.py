"""Rotary positions over three axes: view, row, column.

Angles come from positions, never from a table of the grid.  A head of width h has h/2 complex
channels: h/6 turn with the view index, h/6 with the row, h/6 with the column, at frequencies
theta^(-j / (h/6)).  The two parts of a complex channel lie half a head apart, which suits vector
units; the released weights keep them next to each other, and `halves_from_pairs` is the way
between.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from onediff_jax.errors import InputError

THETA = 10_000.0


def angles(
    positions: Int[Array, "*batch 3"],
    head_width: int,
    scale_factor: float = 1.0,
    interpolates: Bool[Array, ""] | bool = False,
) -> Float[Array, "*batch half"]:
    """Rotation of every complex channel in radians, float32.

    `scale_factor` above 1 reaches beyond the trained positions: with `interpolates` frequencies
    are divided by it, otherwise theta is multiplied by it.  Raises where six does not divide the
    head's width.
    """
    if head_width % 6:
        raise InputError(
            f"Rotary positions over 3 axes need a head width divisible by 6, got {head_width}."
        )
    pairs = head_width // 6
    exponents = jnp.arange(pairs, dtype=jnp.float32) / pairs
    stretched = (THETA * scale_factor) ** -exponents
    squeezed = THETA**-exponents / scale_factor
    frequencies = jnp.where(interpolates, squeezed, stretched)
    # Float32: bfloat16 cannot tell column 257 from 256.
    turned = positions.astype(jnp.float32)[..., None] * frequencies
    return turned.reshape(*positions.shape[:-1], 3 * pairs)


def rotate(
    x: Float[Array, "b n heads h"], turn: Float[Array, "b n half"]
) -> Float[Array, "b n heads h"]:
    """`x` with every complex channel turned by its angle.

    Computed in float32, returned in the type of `x`.
    """
    cos, sin = jnp.cos(turn)[:, :, None], jnp.sin(turn)[:, :, None]
    real, imaginary = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([real * cos - imaginary * sin, real * sin + imaginary * cos], axis=-1)
    return turned.astype(x.dtype)


def halves_from_pairs(head_width: int) -> Int[np.ndarray, " h"]:
    """Which channel of a released head every channel of ours is.

    The two parts of a complex channel are adjacent there, and half a head apart in ours.
    """
    return np.arange(head_width).reshape(-1, 2).T.reshape(-1)


def pairs_from_halves(head_width: int) -> Int[np.ndarray, " h"]:
    """The inverse permutation: which channel of our head every channel of a released head is."""
    return np.argsort(halves_from_pairs(head_width))
