"""What stands in full scenes: solids of five shapes and four materials, and posed figures."""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Float

from onediff_jax.data.scenes import figure, parts
from onediff_jax.data.scenes.basic import LARGE, PALETTE, SIZES, Triple
from onediff_jax.data.scenes.parts import Part

SHAPES = ("sphere", "box", "cylinder", "cone", "capsule")
MATERIALS = {"matte": 0.4, "glossy": 0.2, "striped": 0.2, "checkered": 0.2}  # and their shares
COLORS: dict[str, Triple] = {
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

    def parts(self) -> list[Part]:
        """What the ray tracer draws."""
        x, y, z = self.half
        if self.shape in ("sphere", "capsule"):
            along = np.array((0, 0, z - x))
            part = parts.capsule(-along, along, x, COLORS[self.color])
        elif self.shape == "box":
            part = parts.box(np.zeros(3), np.array(self.half), COLORS[self.color])
        else:
            top = 1.0 if self.shape == "cylinder" else 0.0
            part = parts.tapered(np.zeros(3), np.array(self.half), top, COLORS[self.color])
        part = dataclasses.replace(
            part,
            second=COLORS[self.second or self.color],
            bands=5.0 if self.material == "striped" else 0.0,
            checks=3.0 if self.material == "checkered" else 0.0,
            gloss=float(self.material == "glossy"),
        )
        return [part.placed(self.yaw, self.center)]


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

    def parts(self) -> list[Part]:
        """What the ray tracer draws."""
        place = (*self.spot, 0.0)
        return [part.placed(self.yaw, place) for part in _body(self.who, self.pose)]

    def keypoints(self) -> Float[np.ndarray, "17 3"]:
        """In the world."""
        x, y, z = figure.keypoints(self.who, self.pose).T
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return np.stack([c * x - s * y + self.spot[0], s * x + c * y + self.spot[1], z], axis=1)


@functools.lru_cache(8)  # it is asked for at every place where a person is tried
def _body(who: figure.Identity, pose: figure.Pose) -> list[Part]:
    return figure.parts(who, pose, COLORS)


def draw_solid(rng: np.random.Generator, color: str, others: list[str], material: str) -> Solid:
    """An object that stands at the origin; a second color is one of `others`."""
    shape = SHAPES[rng.integers(len(SHAPES))]
    size = "large" if rng.random() < LARGE else "small"
    radius = SIZES[size] * rng.uniform(0.94, 1.06)
    wide, tall = {
        "sphere": ((1.0, 1.0), (1.0, 1.0)),
        "box": ((0.65, 0.9), (0.7, 1.1)),
        "cylinder": ((0.6, 0.8), (0.7, 1.1)),
        "cone": ((0.8, 1.0), (0.9, 1.2)),
        "capsule": ((0.45, 0.6), (0.95, 1.2)),
    }[shape]
    x, y, z = (radius * rng.uniform(*range_) for range_ in (wide, wide, tall))
    half = (x, y if shape == "box" else x, z)
    second = others[rng.integers(len(others))] if material in ("striped", "checkered") else ""
    yaw = rng.uniform(0, math.pi)
    return Solid(shape, color, second, material, size, "", (0.0, 0.0, half[2]), half, yaw)


ADJECTIVES = {"matte": "", "glossy": "shiny", "striped": "striped", "checkered": "checkered"}


def noun(thing: Solid | Person) -> str:
    """What a thing is called, such as "striped red cone": it names it within a scene."""
    if isinstance(thing, Person):
        return "person"
    words = (ADJECTIVES[thing.material], thing.color, thing.shape)
    return " ".join(word for word in words if word)


def with_article(words: str) -> str:
    """The words after "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
