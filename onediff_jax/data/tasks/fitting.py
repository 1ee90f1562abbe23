"""Records brought to the size of a slot: the grid that fits, the crop, and what moves with it.

An image is cropped at its centre to the aspect ratio of the grid and resized with antialiasing.
Maps use nearest-neighbour resampling; boxes, keypoints and intrinsics move with the crop.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from onediff_jax.data.example import FIELDS, RGB, Field, Record, fields_along
from onediff_jax.errors import BadRecord
from onediff_jax.ops.cameras import Camera, cropped_intrinsics, resized_intrinsics

LONGEST = 4  # sides of a grid are at most 1 : LONGEST
FULL = 0.9  # least share of a slot that a grid fills, where there is such a grid
KEPT = 0.5  # images of which a crop would keep less than this share are bad records
FILTERS = {
    name: Image.Resampling[name.upper()]
    for name in ("lanczos", "bicubic", "bilinear", "box", "nearest")
}


@dataclasses.dataclass(frozen=True)
class Fitting:
    """How images are cropped and resized to a slot."""

    square: bool = False  # crop to squares; else to the grid nearest in aspect ratio
    enlarge: float = 2.0  # largest factor; an image that needs more is a bad record
    filter: str = "lanczos"  # for resizing images


@functools.cache
def grids(tokens: int) -> tuple[tuple[int, int], ...]:
    """The grids (rows, columns) of at most `tokens` tokens that an image is brought to.

    For every number of rows or of columns the longest that fits, if it fills the slot to FULL;
    where there is none, the fullest.
    """
    longest = {
        grid
        for side in range(1, tokens + 1)
        for grid in ((side, tokens // side), (tokens // side, side))
        if grid[1] <= LONGEST * grid[0] <= LONGEST**2 * grid[1]
    }
    fullest = max(rows * columns for rows, columns in longest)
    least = min(FULL * tokens, fullest)
    return tuple(sorted(grid for grid in longest if grid[0] * grid[1] >= least))


def grid_for(height: int, width: int, tokens: int, square: bool = False) -> tuple[int, int]:
    """The grid whose aspect is nearest to a image's, or the largest square."""
    if square:
        return math.isqrt(tokens), math.isqrt(tokens)
    return min(grids(tokens), key=lambda grid: abs(np.log(grid[0] / grid[1] * width / height)))


USUAL = Fitting()


class Crop(NamedTuple):
    """The middle of an image, of some aspect: where it begins, and its size, in pixels."""

    left: float
    top: float
    width: float
    height: float


def crop_of(size: tuple[float | int, float | int], height: int, width: int) -> Crop:
    """The largest central crop of an image of `size` (height, width) with an aspect."""
    scale = min(size[0] / height, size[1] / width)
    w, h = width * scale, height * scale
    return Crop((size[1] - w) / 2, (size[0] - h) / 2, w, h)


def crop_and_resize(
    field: np.ndarray,
    height: int,
    width: int,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> np.ndarray:
    """An image or map cropped at its centre to the aspect of height x width, then resized to it."""
    size = field.shape[:2]
    if size == (height, width):
        return field
    crop = crop_of(size, height, width)
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    return np.asarray(Image.fromarray(field).resize((width, height), resample, box=box))


def fit_record(record: Record, height: int, width: int, fitting: Fitting = USUAL) -> Record:
    """The record with everything that has a place in an image brought to height x width.

    Raises BadRecord where an image would have to be cropped or enlarged too much.
    """
    size = (height, width)
    result = {name: fit_field(record, name, FIELDS[name], size, fitting) for name in record}
    if "boxes" in record and "instances" in record:  # whose numbers say which name is whose
        del result["boxes"]
    elif "boxes" in record:
        seen = np.all(result["boxes"][:, :2] < result["boxes"][:, 2:], axis=1)
        for name in fields_along("names"):
            if name in record:
                kept = [value for value, there in zip(result[name], seen, strict=True) if there]
                result[name] = result[name][seen] if name == "boxes" else tuple(kept)
    return result


def fit_field(
    record: Record, name: str, field: Field, size: tuple[int, int], fitting: Fitting
) -> Any:
    """One field brought to `size`, as `FIELDS` says what a crop does to it."""
    value = record[name]
    if field.kind == "image":
        return fit_image(value, name, size, fitting)
    if field.kind == "images":
        images = enumerate(value)
        return tuple(fit_image(image, f"{name}[{i}]", size, fitting) for i, image in images)
    if field.kind == "named images":
        filtering = FILTERS[fitting.filter]
        return {view: crop_and_resize(image, *size, filtering) for view, image in value.items()}
    if field.crop == "nearest":
        return crop_and_resize(value, *size, Image.Resampling.NEAREST)
    if field.crop == "boxes":
        return move_boxes(value, record["image"], size)
    if field.crop == "keypoints":
        return move_keypoints(value, record["image"], size)
    if field.crop == "intrinsics":
        pairs = zip(value, record["frames"], strict=True)
        return tuple(crop_camera(camera, frame.shape[:2], size) for camera, frame in pairs)
    return value


def fit_image(image: RGB, name: str, size: tuple[int, int], fitting: Fitting) -> RGB:
    """An image brought to `size`; raises BadRecord where that would spoil it."""
    height, width = image.shape[:2]
    crop = crop_of((height, width), *size)
    if size[0] > fitting.enlarge * crop.height:
        raise BadRecord(
            f"{name} is {height} x {width}; views of {size[0]} x {size[1]} need an image at least "
            f"{1 / fitting.enlarge:.2g} times as large, since data.enlarge is {fitting.enlarge:g}."
        )
    if crop.width * crop.height < KEPT * width * height:
        raise BadRecord(
            f"{name} is {height} x {width}; cut to the aspect of {size[0]} x {size[1]} it would "
            f"lose more than {1 - KEPT:.0%}."
        )
    return crop_and_resize(image, *size, FILTERS[fitting.filter])


def move_points(
    points: Float[np.ndarray, "*many 2"], image: RGB, size: tuple[int, int]
) -> Float[np.ndarray, "*many 2"]:
    """Where points (x, y) of an image lie after it was cut and resized."""
    crop = crop_of(image.shape[:2], *size)
    scale = (size[1] / crop.width, size[0] / crop.height)
    return (points - (crop.left, crop.top)) * scale


def move_boxes(
    boxes: Float[np.ndarray, "n 4"], image: RGB, size: tuple[int, int]
) -> Float[np.ndarray, "n 4"]:
    """Boxes likewise, cut at the image's edges; one that is cut off whole is empty."""
    corners = move_points(boxes.reshape(-1, 2, 2).astype(np.float64), image, size)
    return np.clip(corners, 0, (size[1], size[0])).reshape(-1, 4).astype(np.float32)


def move_keypoints(
    keypoints: Float[np.ndarray, "people 17 3"], image: RGB, size: tuple[int, int]
) -> Float[np.ndarray, "people 17 3"]:
    """Keypoints likewise; those that are cut off are absent."""
    places = move_points(keypoints[..., :2].astype(np.float64), image, size)
    inside = np.all((places >= 0) & (places < (size[1], size[0])), -1)
    present = inside & (keypoints[..., 2] > 0)
    found = np.concatenate([places, keypoints[..., 2:]], -1) * present[..., None]
    return found.astype(np.float32)


def crop_camera(
    camera: Camera, shape: tuple[float | int, float | int], size: tuple[int, int]
) -> Camera:
    """A camera that sees an image of `shape` after it was cut and resized."""
    crop = crop_of(shape, *size)
    cut = cropped_intrinsics(camera.intrinsics, crop.top, crop.left)
    return camera._replace(intrinsics=resized_intrinsics(cut, (crop.height, crop.width), size))
