"""Condition pictures, made from a record at the size of its views.

The functions that tasks name are seeded: (record, rng, config) -> Condition.  The looks are those
of the released model's examples: depth is grey with near bright; a map is flat saturated colours on
black; a hole is black.
"""

import dataclasses
import zlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from onediff_jax.data.example import Picture, Record
from onediff_jax.errors import InputError

# The twenty colours of the released prompt guide.
COLORS = {
    "red": "FF0000", "lime": "00FF00", "blue": "0000FF", "yellow": "FFFF00", "magenta": "FF00FF",
    "cyan": "00FFFF", "orange": "FFA500", "purple": "800080", "brown": "A52A2A", "green": "008000",
    "pink": "FFC0CB", "teal": "008080", "darkorange": "FF8C00", "blueviolet": "8A2BE2",
    "darkgreen": "006400", "orangered": "FF4500", "navy": "000080", "gold": "FFD700",
    "turquoise": "40E0D0", "orchid": "DA70D6",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ConditionConfig:
    """How conditions are made."""

    map_colors: str = (
        "drawn"  # of a class in a map: "drawn" for every example, or "fixed" by the class's name
    )

    def __post_init__(self):
        if self.map_colors not in ("drawn", "fixed"):
            raise InputError(
                f"data.conditions.map_colors is {self.map_colors!r}; it can be 'drawn' or 'fixed'."
            )


class Condition(NamedTuple):
    """A condition's picture and the words that it adds to the prompt."""

    picture: Picture
    words: str = ""


def rgb(color: str) -> tuple[int, int, int]:
    """Red, green and blue of a named colour, 0 to 255."""
    return tuple(bytes.fromhex(COLORS[color]))


def depth_picture(depth: Float[np.ndarray, "h w"]) -> Picture:
    """Disparity as grey: nearest white, farthest (or infinite) black."""
    disparity = 1 / depth
    low, high = disparity.min(), disparity.max()
    grey = np.round(255 * (disparity - low) / max(high - low, 1e-12)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def class_colors(names: tuple[str, ...], rng: np.random.Generator | None) -> dict[str, str]:
    """A colour for every class: drawn for this example; without `rng`, fixed by the class name."""
    classes = list(dict.fromkeys(names))
    if len(classes) > len(COLORS):
        raise InputError(
            f"A map of {len(classes)} classes needs as many colours; there are {len(COLORS)}."
        )
    order, left, chosen = list(COLORS), list(COLORS), {}
    if rng is None:
        classes.sort()  # so that colliding names always resolve alike
    for name in classes:
        if rng is None:  # its own colour; where that is taken, the next one left
            own = zlib.crc32(name.encode()) % len(order)
            chosen[name] = next(color for color in order[own:] + order[:own] if color in left)
        else:
            chosen[name] = left[int(rng.integers(len(left)))]
        left.remove(chosen[name])
    return chosen


def mask_words(colors: dict[str, str]) -> str:
    """The prompt's legend of a map, as released: <#00FFFF cyan mask: NAME> for every class."""
    return " ".join(f"<#{COLORS[color]} {color} mask: {name}>" for name, color in colors.items())


def class_map(record: Record, colors: dict[str, str]) -> Picture:
    """Every instance in its class's colour on black."""
    palette = np.zeros((256, 3), np.uint8)
    for number, name in enumerate(record["names"], start=1):
        palette[number] = rgb(colors[name])
    return palette[record["instances"]]


def hole(height: int, width: int, rng: np.random.Generator) -> Bool[np.ndarray, "h w"]:
    """A rectangle of a quarter to three quarters of each side, anywhere in the picture."""
    inside = np.zeros((height, width), bool)
    sides = [max(1, round(side * rng.uniform(0.25, 0.75))) for side in (height, width)]
    top, left = (
        rng.integers(full - side + 1) for full, side in zip((height, width), sides, strict=True)
    )
    inside[top : top + sides[0], left : left + sides[1]] = True
    return inside


def depth(record: Record, rng: np.random.Generator, config: ConditionConfig) -> Condition:
    """The record's depth."""
    return Condition(depth_picture(record["depth"]))


def semantic(record: Record, rng: np.random.Generator, config: ConditionConfig) -> Condition:
    """The record's classes as a colour map, with its legend."""
    colors = class_colors(record["names"], rng if config.map_colors == "drawn" else None)
    return Condition(class_map(record, colors), mask_words(colors))


def masked(record: Record, rng: np.random.Generator, config: ConditionConfig) -> Condition:
    """The picture with a black hole."""
    image = record["image"]
    return Condition(np.where(hole(*image.shape[:2], rng)[..., None], np.uint8(0), image))
