"""A function of large images, computed on overlapping tiles that are blended at their seams.

The same as diffusers' `enable_tiling` of AutoencoderKL: tiles start at every multiple of the
stride, the last ones are what is left of the image, and a seam is linear over the overlap.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def tiled(
    function: Callable[[Array], Array],
    images: Float[Array, "b h w c"],
    tile: int,
    overlap: int,
) -> Float[Array, "b H W k"]:
    """`function(images)`, computed on tiles of at most `tile` x `tile` pixels.

    Neighbours share `overlap` pixels.  The function may scale an image by a ratio that is whole
    for `tile` and `overlap`, and its channels are its own.  Tiles of one shape go one after the
    other through one program.
    """
    height, width = images.shape[1:3]
    if max(height, width) <= tile:
        return function(images)
    places = [
        (i, j) for i in range(0, height, tile - overlap) for j in range(0, width, tile - overlap)
    ]
    cut = {(i, j): images[:, i : i + tile, j : j + tile] for i, j in places}
    made = {}
    for shape in dict.fromkeys(piece.shape for piece in cut.values()):
        same = [place for place in places if cut[place].shape == shape]
        stack = jax.lax.map(function, jnp.stack([cut[place] for place in same]))
        made |= dict(zip(same, stack, strict=True))

    def scaled(pixels: int) -> int:
        return pixels * made[0, 0].shape[1] // cut[0, 0].shape[1]

    rows, keep = {}, scaled(tile - overlap)
    for i, j in places:
        above, left = (i - (tile - overlap), j), (i, j - (tile - overlap))
        if i:
            made[i, j] = blended(made[above], made[i, j], scaled(overlap), axis=1)
        if j:
            made[i, j] = blended(made[left], made[i, j], scaled(overlap), axis=2)
        rows.setdefault(i, []).append(made[i, j][:, :keep, :keep])
    return jnp.concatenate([jnp.concatenate(row, 2) for row in rows.values()], 1)


def blended(
    before: Float[Array, "b _ _ c"], after: Float[Array, "b _ _ c"], overlap: int, axis: int
) -> Float[Array, "b _ _ c"]:
    """`after`, which begins as the end of `before` and fades into itself over `overlap` pixels."""
    overlap = min(before.shape[axis], after.shape[axis], overlap)
    end = jax.lax.slice_in_dim(before, before.shape[axis] - overlap, None, axis=axis)
    start = jax.lax.slice_in_dim(after, 0, overlap, axis=axis)
    rest = jax.lax.slice_in_dim(after, overlap, None, axis=axis)
    share = jnp.expand_dims(jnp.arange(overlap) / overlap, [i for i in range(4) if i != axis])
    return jnp.concatenate([end * (1 - share) + start * share, rest], axis)
