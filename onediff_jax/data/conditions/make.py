"""Condition images, made from a record at the size of its views.

The functions that tasks name are seeded: (record, rng, config) -> Condition.  What they draw from
is said with each; nobody has published what the released model was trained on.  The looks are those
of its examples: depth is grey with near bright; a map is flat saturated colors on black; edges are
white on black; a hole is black.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from onediff_jax.data.conditions import degradations, maps, skeleton
from onediff_jax.data.conditions.hed import FETCH, soft_edges, weights_in
from onediff_jax.data.example import RGB, Record
from onediff_jax.errors import InputError
from onediff_jax.paths import Location
from onediff_jax.settings import Section, setting


@dataclasses.dataclass(frozen=True)
class ConditionConfig(Section):
    """How conditions are made."""

    map_colors: str = setting(
        "drawn",
        "color of a class in a map: drawn for every example, or fixed by the class's name",
        choices=("drawn", "fixed"),
    )
    free_form_holes: float = setting(
        0.0, "share of holes that are brush strokes; the others are rectangles", least=0, most=1
    )
    canny_thresholds: str = setting(
        "drawn",
        "of Canny's edges: drawn for every example, or automatic, from its gradients",
        choices=("drawn", "automatic"),
    )
    window: int = setting(
        0,
        "frames within which several views of a scene lie; 0: anywhere in the scene",
        least=0,
    )
    hed: Location = setting(
        "",
        "file of the weights of the network for soft edges, which tools/datasets/fetch_hed.py "
        "writes",
    )


class Condition(NamedTuple):
    """A condition's image and the words that it adds to the prompt."""

    image: RGB
    words: str = ""


def blurred(record: Record, rng: np.random.Generator, config: ConditionConfig) -> Condition:
    """The image out of focus or shaken, as often; every second one also compressed.

    With s pixels along the shorter side: a Gaussian of deviation 1 to 1 + s / 64 pixels (drawn
    evenly in its logarithm), or a straight motion of 3 to 3 + s / 16 pixels in any direction; then
    JPEG as in `compressed`.
    """
    side = min(record["image"].shape[:2])
    if rng.random() < 0.5:
        sigma = (1 + side / 64) ** rng.random()
        image = degradations.gaussian_blur(record["image"], sigma)
    else:
        length, angle = 3 + side / 16 * rng.random(), rng.uniform(0, math.pi)
        image = degradations.motion_blur(record["image"], length, angle)
    return Condition(compressed(image, rng))


def low_resolution(record: Record, rng: np.random.Generator, config: ConditionConfig) -> Condition:
    """The image at a half to an eighth of its resolution, shown at full size.

    The factor is drawn from 2 to 8, evenly in its logarithm; every second small image is
    compressed as in `compressed`.
    """
    image = record["image"]
    small = degradations.downscale(image, 2 * 4 ** rng.random())
    return Condition(degradations.upscale(compressed(small, rng), *image.shape[:2]))


def compressed(image: RGB, rng: np.random.Generator) -> RGB:
    """Every second image after JPEG of quality 30 to 95, the others as they are."""
    if rng.random() < 0.5:
        return image
    return degradations.jpeg(image, int(rng.integers(30, 96)))


def masked(record: Record, rng: np.random.Generator, config: ConditionConfig) -> Condition:
    """The image with a black hole: a rectangle, or brush strokes for the share set."""
    image = record["image"]
    # Without a share nothing is drawn for it, so that rectangles stay where they always were.
    height, width = image.shape[:2]
    free = config.free_form_holes and rng.random() < config.free_form_holes
    hole = degradations.free_form_hole if free else degradations.rectangular_hole
    return Condition(np.where(hole(height, width, rng)[..., None], np.uint8(0), image))


def canny(record: Record, rng: np.random.Generator, config: ConditionConfig) -> Condition:
    """Canny's edges of the image.

    The upper threshold is drawn from 100 to 300, the lower from 0.3 to 0.6 of it (of grey levels,
    as `canny_edges` counts), or both follow from the image, as set.
    """
    if config.canny_thresholds == "automatic":
        low, high = degradations.automatic_thresholds(record["image"])
    else:
        high = rng.uniform(100, 300)
        low = high * rng.uniform(0.3, 0.6)
    return Condition(degradations.canny_edges(record["image"], low, high))


def hed(record: Record, rng: np.random.Generator, config: ConditionConfig) -> Condition:
    """The image's soft edges by a network, whose weights the setting `hed` names."""
    if not config.hed:
        raise InputError(
            "data.conditions.hed is empty, and soft edges need the file of the network's weights: "
            f"run {FETCH} and set data.conditions.hed to that file."
        )
    probability = soft_edges(record["image"], weights_in(config.hed))
    return Condition(np.repeat(np.round(255 * probability).astype(np.uint8)[..., None], 3, axis=-1))


def depth(record: Record, rng: np.random.Generator, config: ConditionConfig) -> Condition:
    """The record's depth."""
    return Condition(maps.depth_image(record["depth"]))


def semantic(record: Record, rng: np.random.Generator, config: ConditionConfig) -> Condition:
    """The record's classes, as far as they can be seen, as a color map with its legend."""
    instances = record["instances"]
    numbers, places = np.unique(instances, return_inverse=True)
    if numbers[0] > 0:  # no background; its color stays the first
        numbers, places = np.append(0, numbers), places + 1
    names = tuple(record["names"][number - 1] for number in numbers[1:])  # that can be seen
    colors = maps.class_colors(names, rng if config.map_colors == "drawn" else None)
    image = maps.class_map(places.reshape(instances.shape).astype(np.uint8), names, colors)
    return Condition(image, maps.legend(colors, "mask"))


def boxes(record: Record, rng: np.random.Generator, config: ConditionConfig) -> Condition:
    """Filled boxes in their classes' colors, with their legend.

    A record without `boxes` has them from its `instances`, as far as these can be seen.
    """
    names = record["names"]
    if "boxes" in record:
        found = record["boxes"]
    else:
        numbers, found = maps.boxes_of(record["instances"])
        names = tuple(names[number - 1] for number in numbers)
    colors = maps.class_colors(names, rng if config.map_colors == "drawn" else None)
    height, width = record["image"].shape[:2]
    image = maps.box_map(height, width, found, names, colors)
    return Condition(image, maps.legend(colors, "boundingbox"))


def pose(record: Record, rng: np.random.Generator, config: ConditionConfig) -> Condition:
    """The skeletons of the record's people; black where there is nobody."""
    height, width = record["image"].shape[:2]
    return Condition(skeleton.pose_image(record["keypoints"], height, width))
