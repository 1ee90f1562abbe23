"""Soft edges: holistically-nested edge detection (Xie & Tu, ICCV 2015), a forward pass in NumPy.

VGG16's thirteen convolutions in five blocks; a 1 x 1 convolution reads edges off the end of every
block, and their weighted sum is the image's edges.  14,716,171 parameters, which
`tools/datasets/fetch_hed.py` brings.
"""

import functools
from collections.abc import Mapping

import cv2
import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file

from onediff_jax.copies import local_copy
from onediff_jax.data.example import RGB
from onediff_jax.errors import InputError

MEAN = np.array([122.67892, 116.66877, 104.00699], np.float32)  # of ImageNet's red, green, blue
CONVOLUTIONS = (2, 2, 3, 3, 3)  # of every block
_WIDTHS = (64, 128, 256, 512, 512)
FETCH = "python tools/datasets/fetch_hed.py --out artifacts/hed.safetensors"

Weights = Mapping[str, Float[np.ndarray, "..."]]
Map = Float[np.ndarray, "h w c"]


def _shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights; kernels are [row column in out]; color is red first."""
    found: dict[str, tuple[int, ...]] = {}
    inputs = 3
    for block, (count, width) in enumerate(zip(CONVOLUTIONS, _WIDTHS, strict=True), start=1):
        for number in range(1, count + 1):
            found[f"block{block}/convolution{number}/kernel"] = (3, 3, inputs, width)
            found[f"block{block}/convolution{number}/bias"] = (width,)
            inputs = width
        found |= {f"side{block}/kernel": (width,), f"side{block}/bias": ()}
    return found | {"fusion/kernel": (len(_WIDTHS),), "fusion/bias": ()}


@functools.cache
def weights_in(file: str) -> Weights:
    """The weights in a safetensors file, read once; raises InputError where it does not fit."""
    try:
        weights = load_file(local_copy(file))
    except FileNotFoundError:
        raise InputError(f"There is no {file}; bring HED's weights: {FETCH}") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read ({error}); bring it anew: {FETCH}") from None
    wanted = _shapes()
    wrong = [n for n in wanted if n not in weights or weights[n].shape != wanted[n]]
    if wrong or set(weights) != set(wanted):
        name = (wrong or sorted(set(weights) - set(wanted)))[0]
        raise InputError(f"{file} is not HED, as {name!r} shows; bring its weights: {FETCH}")
    return weights


def soft_edges(image: RGB, weights: Weights) -> Float[np.ndarray, "h w"]:
    """The probability, 0 to 1, that a pixel lies on an edge."""
    height, width = image.shape[:2]
    x = image.astype(np.float32) - MEAN
    total = weights["fusion/bias"]
    for block, count in enumerate(CONVOLUTIONS, start=1):
        if block > 1:
            x = max_pool(x)
        for number in range(1, count + 1):
            name = f"block{block}/convolution{number}"
            x = np.maximum(_convolution(x, weights[f"{name}/kernel"], weights[f"{name}/bias"]), 0)
        side = x @ weights[f"side{block}/kernel"] + weights[f"side{block}/bias"]
        shown = cv2.resize(side, (width, height), interpolation=cv2.INTER_LINEAR)
        total = total + weights["fusion/kernel"][block - 1] * shown
    return 1 / (1 + np.exp(-total))


def _convolution(
    x: Map, kernel: Float[np.ndarray, "3 3 c d"], bias: Float[np.ndarray, " d"]
) -> Float[np.ndarray, "h w d"]:
    """Cross-correlation with a 3 x 3 kernel, zeros beyond the border.

    The padded image is laid out as one row of pixels, in which a shift by rows and columns is a
    contiguous piece: nine large matrix products, and no copy of the patches.  The two columns in
    which a piece runs on into the next row are cut off.
    """
    height, width, channels = x.shape
    # One row more than the padding, for the last pieces' overhang of two pixels.
    padded = np.pad(x, ((1, 2), (1, 1), (0, 0)))
    row, stride = padded.reshape(-1, channels), width + 2
    total = np.tile(bias, (height * stride, 1))
    for i in range(3):
        for j in range(3):
            start = i * stride + j
            total += row[start : start + height * stride] @ kernel[i, j]
    return total.reshape(height, stride, -1)[:, :width]


def max_pool(x: Map) -> Float[np.ndarray, "H W c"]:
    """The largest of every 2 x 2; an odd last row or column stands alone."""
    height, width, _ = x.shape
    x = np.pad(x, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.maximum(
        np.maximum(x[::2, ::2], x[::2, 1::2]), np.maximum(x[1::2, ::2], x[1::2, 1::2])
    )
