"""Single solids, and how they are packed for the ray tracer.

A thing is one solid or many (a figure); its solids share the thing's instance number.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from onediff_jax.data.scenes.solids import Solids

Triple = tuple[float, float, float]
BOX, TAPERED, CAPSULE = range(3)


def _turned(place: np.ndarray, yaw: float) -> np.ndarray:
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array((c * place[0] - s * place[1], s * place[0] + c * place[1], place[2]))


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
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

    def placed(self, yaw: float, at: Triple) -> "Part":
        """Turned about z around the origin, then moved."""
        first, last = _turned(self.first, yaw) + at, self.last
        if self.family == CAPSULE:
            last = _turned(last, yaw) + at
        return dataclasses.replace(self, first=first, last=last, yaw=self.yaw + yaw)


def box(center: np.ndarray, half: np.ndarray, color: Triple) -> Part:
    """A box by its centre and half extents."""
    return Part(BOX, np.asarray(center), np.asarray(half), 0.0, color, color)


def tapered(center: np.ndarray, half: np.ndarray, top: float, color: Triple) -> Part:
    """A cylinder (top 1) or cone (top 0) by its centre and half extents."""
    return Part(TAPERED, np.asarray(center), np.asarray(half), top, color, color)


def capsule(
    start: np.ndarray,
    end: np.ndarray,
    radius: float,
    color: Triple,
    second: Triple | None = None,
    bands: float = 0.0,
) -> Part:
    """A capsule by its ends and radius, a ball where both ends are one."""
    return Part(CAPSULE, np.asarray(start), np.asarray(end), radius, color, second or color, bands)


def packed(things: Sequence[Sequence[Part]]) -> Solids:
    """The solids of things; thing i has instance i + 1."""
    numbered = [(part, number) for number, parts in enumerate(things, 1) for part in parts]
    numbered.sort(key=lambda pair: pair[0].family)  # stable
    tables = [np.zeros((0, width), np.float32) for width in (7, 8, 7)]
    for family, tail in enumerate((("yaw",), ("yaw", "shape"), ("shape",))):
        rows = [
            (*part.first, *part.last, *(getattr(part, name) for name in tail))
            for part, _ in numbered
            if part.family == family
        ]
        if rows:
            tables[family] = np.array(rows, np.float32)

    def column(name: str, *shape: int) -> np.ndarray:
        values = [getattr(part, name) for part, _ in numbered]
        return np.array(values, np.float32).reshape(-1, *shape)

    colors = column("color", 3), column("second", 3)
    instance = np.array([number for _, number in numbered], np.int32)
    return Solids(*tables, instance, *colors, *map(column, ("bands", "checks", "gloss")))
