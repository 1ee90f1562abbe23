"""Patches of latents or pixels in the released order: row, column; inside, row, column, channel."""

from typing import Any

from einops import rearrange
from jaxtyping import Shaped

from onediff_jax.errors import InputError


def patchify(latents: Shaped[Any, "*batch H W C"], size: int = 2) -> Shaped[Any, "*batch n p"]:
    """Patches of `size` x `size` latents, flattened with the channel fastest.

    Raises InputError where `size` does not divide height and width.
    """
    height, width, _ = latents.shape[-3:]
    if height % size or width % size:
        raise InputError(
            f"Latents of {height} x {width} do not cut into patches of {size} x {size}."
        )
    return rearrange(latents, "... (h i) (w j) c -> ... (h w) (i j c)", i=size, j=size)


def unpatchify(
    patches: Shaped[Any, "*batch n p"], rows: int, size: int = 2
) -> Shaped[Any, "*batch H W C"]:
    """Latents whose patches these are, `rows` patches high: the inverse of `patchify`."""
    return rearrange(patches, "... (h w) (i j c) -> ... (h i) (w j) c", h=rows, i=size, j=size)
