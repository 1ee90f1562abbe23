"""Solids of three families, and the rays that meet them, for NumPy and jax.numpy.

Each family has places of its own, so that a ray is tried on a solid by one formula only.

b boxes   t tapered solids   c capsules   s = b + t + c solids
"""

import types
from typing import Any, NamedTuple

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
    to `center`.  A place with instance 0 is empty.  Colours are sRGB in [0, 1].
    """

    boxes: Float[Any, "b 7"]  # center, half, yaw
    tapered: Float[Any, "t 8"]  # center, half, yaw, radius at the top over that at the foot
    capsules: Float[Any, "c 7"]  # start, end, radius
    instance: Int[Any, "s"]
    color: Float[Any, "s 3"]
    second: Float[Any, "s 3"]  # of every other band or check
    bands: Float[Any, "s"]  # across the height; 0: plain
    checks: Float[Any, "s"]  # across every axis; 0: plain
    gloss: Float[Any, "s"]  # 0 matte, 1 glossy


def columns(table: Any, rays: Any) -> list[Any]:
    """The columns of a table of solids, each shaped to broadcast against rays."""
    return [column.reshape(column.shape + (1,) * rays.ndim) for column in table.T]


def _entered(
    center: Vector, half: Vector, yaw: Any, origin: Vector, direction: Vector, xp: types.ModuleType
) -> tuple[Vector, Vector]:
    """Rays in the frames of scaled and turned solids."""
    cosine, sine = xp.cos(yaw), xp.sin(yaw)
    inverse = half.map(lambda c: 1 / c)
    return (
        (origin - center).turn(cosine, -sine) * inverse,
        direction.turn(cosine, -sine) * inverse,
    )


def kept(values: Any, xp: types.ModuleType) -> Any:
    """The values, computed where they stand.

    XLA on the CPU would compute them within the loops that read them, and neither once nor on whole
    vectors (measured: four times slower).
    """
    if xp is np:
        return values
    import jax  # here, since loader workers import this file

    return jax.lax.optimization_barrier(values)


def _upright(
    solids: Solids, origin: Vector, direction: Vector, like: Any, xp: types.ModuleType
) -> list[Any]:
    """Length along rays to where they enter boxes and tapered solids, one array for each."""
    found = []
    *table, yaw = columns(solids.boxes, like)
    frame = _entered(Vector(*table[:3]), Vector(*table[3:]), yaw, origin, direction, xp)
    found += list(kept(box_distance(*frame, xp), xp))
    *table, yaw, top = columns(solids.tapered, like)
    frame = _entered(Vector(*table[:3]), Vector(*table[3:]), yaw, origin, direction, xp)
    found += list(kept(tapered_distance(*frame, xp, top), xp))
    return found


def distances(
    solids: Solids, origin: Vector, direction: Vector, xp: types.ModuleType = np
) -> list[Float[Any, "*rays"]]:
    """Length along rays to where they enter each solid; infinite for a miss and an empty place."""
    like = direction.x if np.ndim(direction.x) >= np.ndim(origin.x) else origin.x
    found = _upright(solids, origin, direction, like, xp)
    *table, radius = columns(solids.capsules, like)
    ends = Vector(*table[:3]), Vector(*table[3:])
    found += list(kept(capsule_distance(*ends, radius, origin, direction, xp), xp))
    return [xp.where(solids.instance[i] > 0, each, xp.inf) for i, each in enumerate(found)]


def nearest(
    solids: Solids, origin: Vector, direction: Vector, xp: types.ModuleType = np
) -> tuple[Float[Any, "*rays"], Int[Any, "*rays"]]:
    """Length along rays to the first solid that they enter, and its place; infinite and 0 if none.

    Solid after solid, not by reductions over an axis of solids: XLA's CPU loops do not vectorise
    those.
    """
    every = distances(solids, origin, direction, xp)
    length = every[0]
    for each in every[1:]:
        length = xp.minimum(length, each)
    length = kept(length, xp)
    owner = xp.zeros(length.shape, xp.int32)
    for i in range(len(every) - 1, -1, -1):
        owner = xp.where(every[i] <= length, i, owner)
    return length, owner


def shadowed(
    solids: Solids, point: Vector, sun: Vector, owner: Any, xp: types.ModuleType
) -> Bool[Any, "*rays"]:
    """Whether a solid other than a point's own stands between it and the sun."""
    hidden = [each < xp.inf for each in _upright(solids, point, sun, owner, xp)]
    *table, radius = columns(solids.capsules, owner)
    ends = Vector(*table[:3]), Vector(*table[3:])
    hidden += list(kept(capsule_blocks(*ends, radius, point, sun, xp), xp))
    found = owner < -1
    for i, each in enumerate(hidden):
        found = found | (each & (owner != i) & (solids.instance[i] > 0))
    return kept(found, xp)
