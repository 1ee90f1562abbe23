"""Single solids, and how they are packed for the ray tracer.

A thing is one solid or many (a figure); its solids share the thing's instance number.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from onediff_jax.data.solids import Solids

Triple = tuple[float, float, float]


def _turned(place: np.ndarray, yaw: float) -> np.ndarray:
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array((c * place[0] - s * place[1], s * place[0] + c * place[1], place[2]))


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """One solid: its family (row of `Solids`), where it is, and what it is made of."""

    family: int  # 0 box, 1 tapered, 2 capsule
    first: np.ndarray  # centre, or a capsule's start
    last: np.ndarray  # half extents, or a capsule's end
    shape: float  # a tapered solid's top, a capsule's radius
    colour: Triple
    second: Triple
    bands: float = 0.0
    checks: float = 0.0
    gloss: float = 0.0
    yaw: float = 0.0

    def turned(self, yaw: float) -> "Part":
        """Turned about z around the origin."""
        last = _turned(self.last, yaw) if self.family == 2 else self.last
        return dataclasses.replace(
            self, first=_turned(self.first, yaw), last=last, yaw=self.yaw + yaw
        )

    def shifted(self, by: Triple) -> "Part":
        """Moved."""
        last = self.last + by if self.family == 2 else self.last
        return dataclasses.replace(self, first=self.first + by, last=last)


def box(center: np.ndarray, half: np.ndarray, colour: Triple) -> Part:
    """A box by its centre and half extents."""
    return Part(0, np.asarray(center), np.asarray(half), 0.0, colour, colour)


def tapered(center: np.ndarray, half: np.ndarray, top: float, colour: Triple) -> Part:
    """A cylinder (top 1) or cone (top 0) by its centre and half extents."""
    return Part(1, np.asarray(center), np.asarray(half), top, colour, colour)


def capsule(
    start: np.ndarray,
    end: np.ndarray,
    radius: float,
    colour: Triple,
    second: Triple | None = None,
    bands: float = 0.0,
) -> Part:
    """A capsule by its ends and radius, a ball where both ends are one."""
    return Part(2, np.asarray(start), np.asarray(end), radius, colour, second or colour, bands)


def packed(things: Sequence[Sequence[Part]], places: tuple[int, int, int]) -> Solids:
    """The solids of things; thing i has instance i + 1.

    There are `places` for boxes, tapered solids and capsules.
    """
    tables = [
        np.zeros((count, width), np.float32) for count, width in zip(places, (7, 8, 7), strict=True)
    ]
    tables[0][:, 3:6] = tables[1][:, 3:6] = 1  # extents that can be divided by
    total, starts, free = sum(places), np.cumsum((0, *places)), [0, 0, 0]
    instance = np.zeros(total, np.int32)
    colours, seconds = np.zeros((2, total, 3), np.float32)
    bands, checks, gloss = np.zeros((3, total), np.float32)
    for number, parts in enumerate(things, start=1):
        for part in parts:
            row = free[part.family]
            free[part.family] += 1
            tail = ((part.yaw,), (part.yaw, part.shape), (part.shape,))[part.family]
            tables[part.family][row] = (*part.first, *part.last, *tail)
            place = starts[part.family] + row
            instance[place] = number
            colours[place], seconds[place] = part.colour, part.second
            bands[place], checks[place], gloss[place] = part.bands, part.checks, part.gloss
    return Solids(*tables, instance, colours, seconds, bands, checks, gloss)
