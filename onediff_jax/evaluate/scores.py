"""Scores of single images against the truth, and of many together.  Numpy alone."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Real, UInt8

from onediff_jax.data.example import RGB


class DepthScore(NamedTuple):
    """Errors of one depth map after alignment."""

    abs_rel: float  # mean of |predicted - true| / true
    delta1: float  # share of pixels within a factor of 1.25


def depth_score(
    disparity: Real[np.ndarray, "h w 3"], depth: Float[np.ndarray, "h w"], far: float
) -> DepthScore:
    """Errors of a grey disparity image against true depth, on pixels nearer than `far`.

    Scale and shift are free, as for every method that predicts relative depth: they are fitted to
    the true disparity by least squares (MiDaS, Ranftl et al. 2020), and the result is cut to the
    range of the truth.
    """
    seen = depth < far
    truth = depth[seen].astype(np.float64)
    grey = disparity.mean(-1)[seen]
    design = np.stack([grey, np.ones_like(grey)], -1)
    (scale, shift), *_ = np.linalg.lstsq(design, 1 / truth, rcond=None)
    predicted = 1 / np.clip(scale * grey + shift, 1 / truth.max(), 1 / truth.min())
    ratio = np.maximum(predicted / truth, truth / predicted)
    return DepthScore(
        float(np.mean(np.abs(predicted - truth) / truth)), float(np.mean(ratio < 1.25))
    )


def nearest_color(image: RGB, palette: Sequence[tuple[int, int, int]]) -> Int[np.ndarray, "h w"]:
    """The palette's color that lies nearest to every pixel."""
    distance = np.linalg.norm(image[..., None, :] - np.array(palette, np.float64), axis=-1)
    return distance.argmin(-1)


def confusion(
    predicted: Int[np.ndarray, "h w"], truth: Int[np.ndarray, "h w"], classes: int
) -> Int[np.ndarray, "k k"]:
    """How many pixels of every true class (row) were given every class (column)."""
    return np.bincount((truth * classes + predicted).ravel(), minlength=classes**2).reshape(
        classes, classes
    )


def mean_iou(counts: Int[np.ndarray, "k k"]) -> float:
    """Mean over classes of intersection over union, from pixel counts summed over images."""
    hits = np.diag(counts)
    return float(np.mean(hits / np.maximum(counts.sum(0) + counts.sum(1) - hits, 1)))


def psnr_inside(image: RGB, truth: RGB, inside: Bool[np.ndarray, "h w"]) -> float:
    """PSNR in dB over the pixels inside; 60 where they are equal."""
    error = np.mean(np.square(image[inside].astype(np.float64) - truth[inside]))
    return float(10 * np.log10(255**2 / max(error, 255**2 / 1e6)))


class Named(NamedTuple):
    """An object that a caption names or a detector finds."""

    color: str
    place: str  # left, middle or right


def hue_and_saturation(
    image: UInt8[np.ndarray, "h w 3"],
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Hue in degrees and saturation (chroma over value) of every pixel."""
    r, g, b = np.moveaxis(image.astype(np.float64) / 255, -1, 0)
    value, low = np.maximum(np.maximum(r, g), b), np.minimum(np.minimum(r, g), b)
    chroma = np.maximum(value - low, 1e-9)
    hue = np.select(
        [value == r, value == g], [(g - b) / chroma % 6, (b - r) / chroma + 2], (r - g) / chroma + 4
    )
    return 60 * hue, (value - low) / np.maximum(value, 1e-9)


def detected_colors(
    image: RGB,
    palette: Mapping[str, tuple[float, float, float]],
    least: float = 0.02,
    saturated: float = 0.45,
) -> set[Named]:
    """Objects of the palette's colors (sRGB in [0, 1]) and the third of the image they lie in.

    A pixel belongs to the color whose hue is nearest, if it is saturated; a color that covers
    less than the share `least` of the image was not found.
    """
    hue, saturation = hue_and_saturation(image)
    names = list(palette)
    pure = np.round(255 * np.array([[palette[name] for name in names]])).astype(np.uint8)
    hues = hue_and_saturation(pure)[0][0]
    distance = np.abs((hue[..., None] - hues + 180) % 360 - 180)
    owner = np.where(saturation > saturated, distance.argmin(-1), -1)
    found = set()
    for i, name in enumerate(names):
        columns = np.nonzero(owner == i)[1]
        if len(columns) >= least * owner.size:
            third = int(3 * (columns.mean() + 0.5) / owner.shape[1])
            found.add(Named(name, ("left", "middle", "right")[third]))
    return found


def f1(found: Sequence[set], named: Sequence[set]) -> float:
    """Harmonic mean of precision and recall over all images together."""
    hits = sum(len(a & b) for a, b in zip(found, named, strict=True))
    return 2 * hits / max(sum(map(len, found)) + sum(map(len, named)), 1)
