"""What stands in scenes: solids of five shapes and four materials, and posed figures."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from onediff_jax.data.scenes import figure
from onediff_jax.data.scenes.geometry import Triple
from onediff_jax.data.scenes.primitives import Primitive, box, capsule, tapered

PALETTE: dict[str, Triple] = {  # sRGB; hues are at least 20 degrees apart
    "red": (0.88, 0.10, 0.12),
    "orange": (1.00, 0.50, 0.05),
    "yellow": (0.98, 0.86, 0.10),
    "green": (0.16, 0.70, 0.22),
    "cyan": (0.12, 0.80, 0.84),
    "blue": (0.12, 0.28, 0.90),
    "purple": (0.52, 0.18, 0.80),
    "pink": (0.98, 0.45, 0.74),
}
SIZES: dict[str, float] = {"small": 0.58, "large": 1.08}  # a sphere's radius, in world units
LARGE = 0.65  # share of large objects
SHAPES = {  # half width and half height of a solid, over its size
    "sphere": ((1.0, 1.0), (1.0, 1.0)),
    "box": ((0.65, 0.9), (0.7, 1.1)),  # a cube as wide as a sphere would look larger than it
    "cylinder": ((0.6, 0.8), (0.7, 1.1)),
    "cone": ((0.8, 1.0), (0.9, 1.2)),
    "capsule": ((0.45, 0.6), (0.95, 1.2)),
}
ADJECTIVES = {"matte": "", "glossy": "shiny", "striped": "striped", "checkered": "checkered"}
NAMED_COLORS: dict[str, Triple] = {
    **PALETTE,
    "white": (0.95, 0.95, 0.95),
    "black": (0.06, 0.06, 0.07),
    "brown": (0.45, 0.26, 0.12),
}


@dataclasses.dataclass(frozen=True)
class Solid:
    """An object that stands on the ground; lengths in world units, yaw in radians about z."""

    shape: str
    color: str
    second: str  # of stripes or checks; empty where there are none
    material: str
    size: str
    place: str  # the third of the image that holds the centroid of its visible pixels
    center: Triple
    half: Triple
    yaw: float

    @property
    def name(self) -> str:
        """Its class."""
        return self.shape

    @property
    def extent(self) -> tuple[float, float]:
        """Radius of the ground that it takes up, and half its height."""
        corner = math.hypot(*self.half[:2]) if self.shape == "box" else max(self.half[:2])
        return corner, self.half[2]

    def at(self, x: float, y: float) -> "Solid":
        """The same at another spot."""
        return dataclasses.replace(self, center=(x, y, self.half[2]))

    def primitives(self) -> list[Primitive]:
        """What the ray tracer draws."""
        x, y, z = self.half
        if self.shape in ("sphere", "capsule"):
            along = np.array((0, 0, z - x))
            solid = capsule(-along, along, x, NAMED_COLORS[self.color])
        elif self.shape == "box":
            solid = box(np.zeros(3), np.array(self.half), NAMED_COLORS[self.color])
        else:
            top = 1.0 if self.shape == "cylinder" else 0.0
            solid = tapered(np.zeros(3), np.array(self.half), top, NAMED_COLORS[self.color])
        solid = dataclasses.replace(
            solid,
            second=NAMED_COLORS[self.second or self.color],
            bands=5.0 if self.material == "striped" else 0.0,
            checks=3.0 if self.material == "checkered" else 0.0,
            gloss=float(self.material == "glossy"),
        )
        return [solid.at(self.yaw, self.center)]


@dataclasses.dataclass(frozen=True)
class Person:
    """A figure in a pose; its yaw turns it from facing along the world's x."""

    who: figure.Identity
    pose: figure.Pose
    place: str
    spot: tuple[float, float]
    yaw: float

    name = "person"
    size = ""

    @property
    def color(self) -> str:
        """Of the shirt."""
        return self.who.shirt

    @property
    def center(self) -> Triple:
        """Half-way up."""
        return (*self.spot, self.extent[1])

    @property
    def extent(self) -> tuple[float, float]:
        """Radius of the ground that it takes up, and half its height."""
        sits = self.pose.name.startswith("sitting")
        return (0.27 if sits else 0.2) * self.who.height, (0.27 if sits else 0.5) * self.who.height

    def at(self, x: float, y: float) -> "Person":
        """The same at another spot."""
        return dataclasses.replace(self, spot=(x, y))

    def primitives(self) -> list[Primitive]:
        """What the ray tracer draws."""
        place = (*self.spot, 0.0)
        return [limb.at(self.yaw, place) for limb in _body(self.who, self.pose)]

    def keypoints(self) -> Float[np.ndarray, "17 3"]:
        """In the world."""
        x, y, z = figure.keypoints(self.who, self.pose).T
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return np.stack([c * x - s * y + self.spot[0], s * x + c * y + self.spot[1], z], axis=1)


@functools.lru_cache(8)  # it is asked for at every place where a person is tried
def _body(who: figure.Identity, pose: figure.Pose) -> list[Primitive]:
    return figure.primitives(who, pose, NAMED_COLORS)


SceneObject = Solid | Person


def draw_solid(
    rng: np.random.Generator,
    shapes: Sequence[str],
    color: str,
    others: Sequence[str],
    material: str,
) -> Solid:
    """A solid that stands at the origin; a second color is one of `others`."""
    shape = shapes[rng.integers(len(shapes))]
    size = "large" if rng.random() < LARGE else "small"
    radius = SIZES[size] * rng.uniform(0.94, 1.06)
    wide, tall = SHAPES[shape]
    x, y, z = (radius * rng.uniform(*range_) for range_ in (wide, wide, tall))
    half = (x, y if shape == "box" else x, z)
    second = others[rng.integers(len(others))] if material in ("striped", "checkered") else ""
    yaw = rng.uniform(0, math.pi)
    return Solid(shape, color, second, material, size, "", (0.0, 0.0, half[2]), half, yaw)


def noun(item: SceneObject, shape: str = "") -> str:
    """What an object is called, such as "striped red cone": it names it within a scene.

    `shape` is another word for the shape of a solid.
    """
    if isinstance(item, Person):
        return "person"
    words = (ADJECTIVES[item.material], item.color, shape or item.shape)
    return " ".join(word for word in words if word)


def with_article(words: str) -> str:
    """The words after "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
