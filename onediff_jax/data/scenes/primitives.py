"""The solids that objects consist of, and the ray tracer's tables of them.

An object is one primitive or many (a figure); its primitives share the object's instance number.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from onediff_jax.data.scenes.geometry import Triple
from onediff_jax.data.scenes.solids import Solids

BOX, TAPERED, CAPSULE = range(3)


def _turn(place: np.ndarray, yaw: float) -> np.ndarray:
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array((c * place[0] - s * place[1], s * place[0] + c * place[1], place[2]))


@dataclasses.dataclass(frozen=True, eq=False)
class Primitive:
    """One solid: its family (row of `Solids`), where it is, and what it is made of."""

    family: int  # BOX, TAPERED or CAPSULE
    first: np.ndarray  # centre, or a capsule's start
    last: np.ndarray  # half extents, or a capsule's end
    shape: float  # a tapered solid's top, a capsule's radius
    color: Triple
    second: Triple
    bands: float = 0.0
    checks: float = 0.0
    gloss: float = 0.0
    yaw: float = 0.0

    def at(self, yaw: float, place: Triple) -> "Primitive":
        """Turned about z around the origin, then moved."""
        first, last = _turn(self.first, yaw) + place, self.last
        if self.family == CAPSULE:
            last = _turn(last, yaw) + place
        return dataclasses.replace(self, first=first, last=last, yaw=self.yaw + yaw)


def box(center: np.ndarray, half: np.ndarray, color: Triple) -> Primitive:
    """A box by its centre and half extents."""
    return Primitive(BOX, np.asarray(center), np.asarray(half), 0.0, color, color)


def tapered(center: np.ndarray, half: np.ndarray, top: float, color: Triple) -> Primitive:
    """A cylinder (top 1) or cone (top 0) by its centre and half extents."""
    return Primitive(TAPERED, np.asarray(center), np.asarray(half), top, color, color)


def capsule(
    start: np.ndarray,
    end: np.ndarray,
    radius: float,
    color: Triple,
    second: Triple | None = None,
    bands: float = 0.0,
) -> Primitive:
    """A capsule by its ends and radius, a ball where both ends are one."""
    return Primitive(
        CAPSULE, np.asarray(start), np.asarray(end), radius, color, second or color, bands
    )


def solids_of(objects: Sequence[Sequence[Primitive]]) -> Solids:
    """The primitives of objects in tables; object i has instance i + 1."""
    numbered = [
        (primitive, number)
        for number, primitives in enumerate(objects, 1)
        for primitive in primitives
    ]
    numbered.sort(key=lambda pair: pair[0].family)  # stable
    tables = [np.zeros((0, width), np.float32) for width in (7, 8, 7)]
    for family, tail in enumerate((("yaw",), ("yaw", "shape"), ("shape",))):
        rows = [
            (*primitive.first, *primitive.last, *(getattr(primitive, name) for name in tail))
            for primitive, _ in numbered
            if primitive.family == family
        ]
        if rows:
            tables[family] = np.array(rows, np.float32)

    def column(name: str, *shape: int) -> np.ndarray:
        values = [getattr(primitive, name) for primitive, _ in numbered]
        return np.array(values, np.float32).reshape(-1, *shape)

    boxes, tapered, capsules = tables
    color, second = column("color", 3), column("second", 3)
    instance = np.array([number for _, number in numbered], np.int32)
    bands, checks, gloss = map(column, ("bands", "checks", "gloss"))
    return Solids(boxes, tapered, capsules, instance, color, second, bands, checks, gloss)
