"""Solids of three families, the rays that may meet them, and where they do.

Each family has rows of its own, so that a ray is tried on a solid by one formula only, and a ray is
tried on few: pairs of a solid and a ray are listed first (`culling` knows which can meet).

b boxes   t tapered solids   c capsules   s = b + t + c solids   n rays   p pairs
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from onediff_jax.data.scenes.geometry import Vector
from onediff_jax.data.scenes.intersections import (
    box_distance,
    capsule_blocks,
    capsule_distance,
    tapered_distance,
)


class Solids(NamedTuple):
    """What stands in a scene: first boxes, then tapered solids, then capsules.

    A box or tapered solid is its unit solid scaled by `half`, turned by `yaw` about z and moved
    to `center`.  Colors are sRGB in [0, 1].
    """

    boxes: Float[np.ndarray, "b 7"]  # center, half, yaw
    tapered: Float[np.ndarray, "t 8"]  # center, half, yaw, radius at the top over that at the foot
    capsules: Float[np.ndarray, "c 7"]  # start, end, radius
    instance: Int[np.ndarray, " s"]  # of the object that it is a part of, counted from 1
    color: Float[np.ndarray, "s 3"]
    second: Float[np.ndarray, "s 3"]  # of every other band or check
    bands: Float[np.ndarray, " s"]  # across the height; 0: plain
    checks: Float[np.ndarray, " s"]  # across every axis; 0: plain
    gloss: Float[np.ndarray, " s"]  # 0 matte, 1 glossy


class Pairs(NamedTuple):
    """Solids, and the rays that are tried on them; the solids do not decrease."""

    solid: Int[np.ndarray, " p"]
    ray: Int[np.ndarray, " p"]


def pairs_of(rays: Sequence[Int[np.ndarray, " _"]]) -> Pairs:
    """Each solid with its rays, listed solid by solid."""
    solids = np.repeat(np.arange(len(rays)), list(map(len, rays)))
    return Pairs(solids, np.concatenate(rays) if rays else solids)


def join_solids(several: Sequence[Solids]) -> tuple[Solids, list[Int[np.ndarray, " _"]]]:
    """The solids of several scenes in one, and for each scene its solids' numbers in that."""
    family = [np.repeat(range(3), list(map(len, solids[:3]))) for solids in several]
    order = np.argsort(np.concatenate(family), kind="stable")
    columns = [np.concatenate(each) for each in zip(*several, strict=True)]
    numbers = np.empty_like(order)
    numbers[order] = np.arange(len(order))
    starts = np.cumsum([len(each) for each in family])[:-1]
    return Solids(*columns[:3], *(c[order] for c in columns[3:])), np.split(numbers, starts)


def _upright(
    columns: Float[np.ndarray, "a f"], origin: Vector, direction: Vector
) -> tuple[Vector, Vector]:
    """Rays in the frames of scaled and turned solids."""
    cosine, sine, inverse = np.cos(columns[6]), np.sin(columns[6]), Vector(*(1 / columns[3:6]))
    away = origin - Vector(*columns[:3])
    return away.turn(cosine, -sine) * inverse, direction.turn(cosine, -sine) * inverse


def _box(columns: Any, origin: Vector, direction: Vector) -> Float[np.ndarray, " p"]:
    return box_distance(*_upright(columns, origin, direction))


def _taper(columns: Any, origin: Vector, direction: Vector) -> Float[np.ndarray, " p"]:
    return tapered_distance(*_upright(columns, origin, direction), columns[7])


def _capsule(columns: Any, origin: Vector, direction: Vector) -> Float[np.ndarray, " p"]:
    ends = Vector(*columns[:3]), Vector(*columns[3:6])
    return capsule_distance(*ends, columns[6], origin, direction)


def _capsule_shadow(columns: Any, origin: Vector, direction: Vector) -> Bool[np.ndarray, " p"]:
    ends = Vector(*columns[:3]), Vector(*columns[3:6])
    return capsule_blocks(*ends, columns[6], origin, direction)


def _by_family(
    solids: Solids,
    pairs: Pairs,
    origin: Vector,
    direction: Vector,
    formulas: Sequence[Callable[..., Any]],
) -> list[np.ndarray]:
    """What each family's formula says of its pairs; nothing of a family that has none."""
    found, first = [], 0
    for table, formula in zip(solids[:3], formulas, strict=True):
        mine = slice(*np.searchsorted(pairs.solid, (first, first + len(table))))
        if mine.start < mine.stop:
            ray = pairs.ray[mine]
            start, along = (
                vector.map(lambda c, ray=ray: c[ray] if np.ndim(c) else c)
                for vector in (origin, direction)
            )
            found.append(formula(table.T[:, pairs.solid[mine] - first], start, along))
        first += len(table)
    return found


def entries(
    solids: Solids, pairs: Pairs, origin: Vector, direction: Vector
) -> Float[np.ndarray, " p"]:
    """Length along rays to where they enter solids, infinite for a miss.

    `origin` holds numbers or arrays of every ray (n), as `direction` does.
    """
    found = _by_family(solids, pairs, origin, direction, (_box, _taper, _capsule))
    return np.concatenate(found) if found else np.zeros(0, np.float32)


def first_entries(
    pairs: Pairs, entry: Float[np.ndarray, " p"], rays: int
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Length along rays to the first solid that they enter, and which; infinite and -1 if none."""
    length, solid = np.full(rays, np.inf, entry.dtype), np.full(rays, -1)
    np.minimum.at(length, pairs.ray, entry)
    first = np.flatnonzero((entry == length[pairs.ray]) & (entry < np.inf))[::-1]
    solid[pairs.ray[first]] = pairs.solid[first]  # of equals the last to be written: the lowest
    return length, solid


def shadowed_rays(
    solids: Solids, pairs: Pairs, point: Vector, sun: Vector, owner: Int[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Whether a solid other than a point's own (`owner`, -1: none) stands before the sun."""
    formulas = (
        lambda *pair: _box(*pair) < np.inf,
        lambda *pair: _taper(*pair) < np.inf,
        _capsule_shadow,
    )
    blocks = _by_family(solids, pairs, point, sun, formulas)
    found = np.zeros(len(owner), bool)
    if blocks:
        other = owner[pairs.ray] != pairs.solid
        found[pairs.ray[np.concatenate(blocks) & other]] = True
    return found
