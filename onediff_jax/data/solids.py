"""Solids of three families, the rays that may meet them, and where they do.

Each family has rows of its own, so that a ray is tried on a solid by one formula only, and a ray is
tried on few: pairs of a solid and a ray are listed first (`windows` knows which can meet).

b boxes   t tapered solids   c capsules   s = b + t + c solids   n rays   p pairs
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from onediff_jax.data.primitives import (
    Vector,
    box_distance,
    capsule_blocks,
    capsule_distance,
    tapered_distance,
)


class Solids(NamedTuple):
    """What stands in a scene: first boxes, then tapered solids, then capsules.

    A box or tapered solid is its unit primitive scaled by `half`, turned by `yaw` about z and moved
    to `center`.  Colours are sRGB in [0, 1].
    """

    boxes: Float[np.ndarray, "b 7"]  # center, half, yaw
    tapered: Float[np.ndarray, "t 8"]  # center, half, yaw, radius at the top over that at the foot
    capsules: Float[np.ndarray, "c 7"]  # start, end, radius
    instance: Int[np.ndarray, " s"]  # of the thing that it is a part of, counted from 1
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


def joined(several: Sequence[Solids]) -> tuple[Solids, list[Int[np.ndarray, " _"]]]:
    """The solids of several scenes in one, and for each scene its solids' numbers in that."""
    family = [np.repeat(range(3), list(map(len, solids[:3]))) for solids in several]
    order = np.argsort(np.concatenate(family), kind="stable")
    columns = [np.concatenate(each) for each in zip(*several, strict=True)]
    numbers = np.empty_like(order)
    numbers[order] = np.arange(len(order))
    starts = np.cumsum([len(each) for each in family])[:-1]
    return Solids(*columns[:3], *(c[order] for c in columns[3:])), np.split(numbers, starts)


def _by_family(
    solids: Solids, pairs: Pairs, origin: Vector, direction: Vector
) -> list[tuple[Float[np.ndarray, "a f"], Vector, Vector]]:
    """For every family the rows of its pairs' solids, column by column, and its pairs' rays."""
    found, first = [], 0
    for table in solids[:3]:
        mine = slice(*np.searchsorted(pairs.solid, (first, first + len(table))))
        ray = pairs.ray[mine]
        start, along = (
            vector.map(lambda c, ray=ray: c[ray] if np.ndim(c) else c)
            for vector in (origin, direction)
        )
        found.append((table.T[:, pairs.solid[mine] - first], start, along))
        first += len(table)
    return found


def _upright(
    columns: Float[np.ndarray, "a f"], origin: Vector, direction: Vector
) -> tuple[Vector, Vector]:
    """Rays in the frames of scaled and turned solids."""
    cosine, sine, inverse = np.cos(columns[6]), np.sin(columns[6]), Vector(*(1 / columns[3:6]))
    away = origin - Vector(*columns[:3])
    return away.turn(cosine, -sine) * inverse, direction.turn(cosine, -sine) * inverse


def entries(
    solids: Solids, pairs: Pairs, origin: Vector, direction: Vector
) -> Float[np.ndarray, " p"]:
    """Length along rays to where they enter solids, infinite for a miss.

    `origin` holds numbers or arrays of every ray (n), as `direction` does.
    """
    boxes, tapered, capsules = _by_family(solids, pairs, origin, direction)
    box = box_distance(*_upright(*boxes), np)
    taper = tapered_distance(*_upright(*tapered), np, tapered[0][7])
    columns, start, along = capsules
    ends = Vector(*columns[:3]), Vector(*columns[3:6])
    capsule = capsule_distance(*ends, columns[6], start, along, np)
    return np.concatenate([box, taper, capsule])


def nearest(
    pairs: Pairs, entry: Float[np.ndarray, " p"], rays: int
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Length along rays to the first solid that they enter, and which; infinite and -1 if none."""
    length, solid = np.full(rays, np.inf, entry.dtype), np.full(rays, -1)
    np.minimum.at(length, pairs.ray, entry)
    first = np.flatnonzero((entry == length[pairs.ray]) & (entry < np.inf))[::-1]
    solid[pairs.ray[first]] = pairs.solid[first]  # of equals the last to be written: the lowest
    return length, solid


def shadowed(
    solids: Solids, pairs: Pairs, point: Vector, sun: Vector, owner: Int[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Whether a solid other than a point's own (`owner`, -1: none) stands before the sun."""
    boxes, tapered, (columns, start, along) = _by_family(solids, pairs, point, sun)
    box = box_distance(*_upright(*boxes), np) < np.inf
    taper = tapered_distance(*_upright(*tapered), np, tapered[0][7]) < np.inf
    ends = Vector(*columns[:3]), Vector(*columns[3:6])
    capsule = capsule_blocks(*ends, columns[6], start, along, np)
    blocks = np.concatenate([box, taper, capsule]) & (owner[pairs.ray] != pairs.solid)
    found = np.zeros(len(owner), bool)
    found[pairs.ray[blocks]] = True
    return found
