"""Annotations as images: depth in grey, classes and boxes in flat colors; and COCO's masks.

An instance map numbers every pixel: 0 is background, i the i-th of the record's names.  A box is
(left, top, right, bottom) in pixels, half open: left and top are inside it, right and bottom are
not.  Colors are those of the released prompt guide; the ground is black.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt16
from pycocotools import mask as coco

from onediff_jax.data.example import RGB
from onediff_jax.errors import BadRecord

# The twenty colors of the released prompt guide.
COLORS = {
    "red": "FF0000", "lime": "00FF00", "blue": "0000FF", "yellow": "FFFF00", "magenta": "FF00FF",
    "cyan": "00FFFF", "orange": "FFA500", "purple": "800080", "brown": "A52A2A", "green": "008000",
    "pink": "FFC0CB", "teal": "008080", "darkorange": "FF8C00", "blueviolet": "8A2BE2",
    "darkgreen": "006400", "orangered": "FF4500", "navy": "000080", "gold": "FFD700",
    "turquoise": "40E0D0", "orchid": "DA70D6",
}  # fmt: skip

# Pixels from the first one that a polygon may reach; COCO's own code counts in 32 bits.
FARTHEST = 1e5

Instances = UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"]
Mask = Bool[np.ndarray, "h w"]


def rgb(color: str) -> tuple[int, int, int]:
    """Red, green and blue of a named color, 0 to 255."""
    red, green, blue = bytes.fromhex(COLORS[color])
    return red, green, blue


def depth_image(depth: Float[np.ndarray, "h w"]) -> RGB:
    """Disparity as grey: nearest white, farthest (or infinite) black; one depth alone is black.

    Depth is positive, in any unit.
    """
    disparity = 1 / depth
    low, high = disparity.min(), disparity.max()
    grey = np.round(255 * (disparity - low) / max(high - low, 1e-12)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def class_colors(names: Sequence[str], rng: np.random.Generator | None) -> dict[str, str]:
    """A color for every class: drawn for this example; without `rng`, fixed by the class name.

    Raises BadRecord where there are more classes than colors.
    """
    classes = list(dict.fromkeys(names))
    if len(classes) > len(COLORS):
        raise BadRecord(
            f"A map of {len(classes)} classes needs as many colors; there are {len(COLORS)}."
        )
    order, left, chosen = list(COLORS), list(COLORS), {}
    if rng is None:
        classes.sort()  # so that colliding names always resolve alike
    for name in classes:
        if rng is None:  # its own color; where that is taken, the next one left
            own = zlib.crc32(name.encode()) % len(order)
            chosen[name] = next(color for color in order[own:] + order[:own] if color in left)
        else:
            chosen[name] = left[int(rng.integers(len(left)))]
        left.remove(chosen[name])
    return chosen


def legend(colors: dict[str, str], kind: str) -> str:
    """What a prompt says of a map, as released: <#00FFFF cyan mask: NAME> for every class.

    `kind` is "mask" or "boundingbox".
    """
    return " ".join(f"<#{COLORS[color]} {color} {kind}: {name}>" for name, color in colors.items())


def class_map(instances: Instances, names: Sequence[str], colors: dict[str, str]) -> RGB:
    """Every instance in its class's color on black; every number has its name."""
    palette = np.array([(0, 0, 0), *(rgb(colors[name]) for name in names)], np.uint8)
    return palette[instances]


def box_map(
    height: int,
    width: int,
    boxes: Float[np.ndarray, "n 4"],
    names: Sequence[str],
    colors: dict[str, str],
) -> RGB:
    """Filled boxes in their classes' colors on black, smaller ones over larger ones.

    Edges are rounded to pixels, a box is at least one pixel wide and high, and what reaches beyond
    the image is cut.
    """
    size = np.array([width, height])
    starts, ends = np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, 2:], size)
    starts = np.minimum(np.round(starts), size - 1).astype(int)
    ends = np.maximum(np.round(ends).astype(int), starts + 1)
    image = np.zeros((height, width, 3), np.uint8)
    for i in np.argsort(-np.prod(ends - starts, axis=1), kind="stable"):
        (left, top), (right, bottom) = starts[i], ends[i]
        image[top:bottom, left:right] = rgb(colors[names[i]])
    return image


def boxes_of(instances: Instances) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n 4"]]:
    """Numbers of the instances that can be seen, and the smallest box around each."""
    numbers = np.unique(instances)
    numbers = numbers[numbers > 0].astype(int)
    boxes = np.zeros((len(numbers), 4))
    for box, number in zip(boxes, numbers, strict=True):
        rows, columns = (np.flatnonzero((instances == number).any(axis)) for axis in (1, 0))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return numbers, boxes


def instances_of(masks: Bool[np.ndarray, "n h w"]) -> UInt16[np.ndarray, "h w"]:
    """The instance map of masks, the first numbered 1; smaller ones lie over larger ones."""
    instances = np.zeros(masks.shape[1:], np.uint16)
    for i in np.argsort(-masks.sum((1, 2)), kind="stable"):
        instances[masks[i]] = i + 1
    return instances


def mask_of(segmentation: list | dict, height: int, width: int) -> Mask:
    """The mask of a COCO annotation's `segmentation`: polygons, or runs compressed or not.

    Polygons are lists of x, y, x, y, ... in pixels, united; runs are {"size": [height, width],
    "counts": ...} down the columns, beginning outside the mask: a list of their lengths or COCO's
    compressed string.  Raises BadRecord where the annotation does not fit the image.
    """
    try:
        if isinstance(segmentation, dict):
            return mask_of_runs(segmentation["counts"], segmentation["size"], height, width)
        points = [np.reshape(polygon, (-1, 2)).astype(float) for polygon in segmentation]
        if not all(len(p) >= 3 and (np.abs(p) < FARTHEST).all() for p in points) or not points:
            raise ValueError("a polygon of too few points, or with one far outside")
        runs = coco.frPyObjects([p.ravel().tolist() for p in points], height, width)
        return coco.decode(coco.merge(runs)).astype(bool)
    except (ArithmeticError, ValueError, TypeError, KeyError, IndexError) as error:
        raise BadRecord(
            f"A segmentation does not fit an image of height {height} and width {width}: {error}; "
            "it can be polygons of three points or more, or runs of that size."
        ) from None


def mask_of_runs(counts: Any, size: Any, height: int, width: int) -> Mask:
    """The mask of COCO's runs; raises ValueError where their pixels are not those of the size."""
    if size not in ([height, width], (height, width)):
        raise ValueError(f"size {size}")
    if isinstance(counts, list):
        counts = coco.frPyObjects({"size": size, "counts": counts}, height, width)["counts"]
    mask = coco.decode({"size": [height, width], "counts": counts})
    try:  # pycocotools leaves pixels to chance that runs do not reach, and refuses what is too long
        coco.decode({"size": [height * width - 1, 1], "counts": counts})
    except ValueError:
        return mask.astype(bool)
    raise ValueError(f"fewer than {height * width} pixels in its runs")
