"""Rotary positions over three axes: view, row, column.

Angles come from positions, never from a table of the grid.  A head of width h has h/2 complex
channels: h/6 turn with the view index, h/6 with the row, h/6 with the column, at frequencies
theta^(-j / (h/6)).  The two parts of a complex channel lie half a head apart, which suits vector
units; the released weights keep them next to each other, and `halves_from_pairs` is the way
between.
"""

import jax
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


@jax.custom_vjp
def rotate(
    x: Float[Array, "b heads h n"], turn: Float[Array, "b half n"]
) -> Float[Array, "b heads h n"]:
    """`x` with every complex channel turned by its angle; angles are constants.

    Computed in float32, returned in the type of `x`.
    """
    wide = x.astype(jnp.float32)
    # By a matmul, which is exact: half a head is not a whole number of vector registers.
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    across = jnp.einsum(
        "ij,bkjn->bkin",
        jnp.asarray(quarter_turn(x.shape[2]), x.dtype),
        x,
        precision=exact,
        preferred_element_type=jnp.float32,
    )
    cos, sin = (
        jnp.concatenate([part, part], 1)[:, None] for part in (jnp.cos(turn), jnp.sin(turn))
    )
    return (wide * cos + across * sin).astype(x.dtype)


def rotate_backward(turn, d):
    """The cotangent of `x` is turned back."""
    return rotate(d, -turn), None


rotate.defvjp(lambda x, turn: (rotate(x, turn), turn), rotate_backward)


def quarter_turn(head_width: int) -> Float[np.ndarray, "h h"]:
    """The matrix that turns every complex channel by 90 degrees: (-imaginary, real)."""
    return np.kron([[0, -1], [1, 0]], np.eye(head_width // 2))


def halves_from_pairs(head_width: int) -> Int[np.ndarray, " h"]:
    """Which channel of a released head every channel of ours is.

    The two parts of a complex channel are adjacent there, and half a head apart in ours.
    """
    return np.arange(head_width).reshape(-1, 2).T.reshape(-1)


def pairs_from_halves(head_width: int) -> Int[np.ndarray, " h"]:
    """The inverse permutation: which channel of our head every channel of a released head is."""
    return np.argsort(halves_from_pairs(head_width))
