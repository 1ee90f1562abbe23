"""Which rays may meet a solid on their way from the camera or to the sun.

A solid lies in the hull of a few balls, and these in a rectangle, as the camera or the sun sees it.

s solids   m balls   n rays
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from onediff_jax.data.scenes.geometry import PinholeCamera, Vector
from onediff_jax.data.scenes.shading import SUN_RADIUS
from onediff_jax.data.scenes.solids import Solids

MARGIN = np.float32(1e-4)  # for float32
CORNERS = np.array(np.meshgrid(*[(-1, 1)] * 3), np.float32).reshape(3, 8).T


class Slopes(NamedTuple):
    """Of rays from a camera: to the right and down, over ahead."""

    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]


class Balls(NamedTuple):
    """Of each solid, balls in whose hull it lies."""

    centers: Float[np.ndarray, "s m 3"]
    radii: Float[np.ndarray, "s m"]


def bounding_balls(solids: Solids) -> Balls:
    """Those of every solid: at its box's corners, or at its ends."""
    upright = np.concatenate([solids.boxes[:, :7], solids.tapered[:, :7]])
    corners = CORNERS * upright[:, None, 3:6]
    cosine, sine = np.cos(upright[:, 6:7]), np.sin(upright[:, 6:7])
    x, y, z = np.moveaxis(corners, -1, 0)
    turned = np.stack([cosine * x - sine * y, sine * x + cosine * y, z], axis=-1)
    ends = np.repeat(solids.capsules[:, :6].reshape(-1, 2, 3), 4, axis=1)
    centers = np.concatenate([upright[:, None, :3] + turned, ends])
    radii = np.concatenate([np.zeros(len(upright), np.float32), solids.capsules[:, 6]])
    return Balls(centers, np.repeat(radii[:, None], 8, axis=1))


def seen_rays(around: Balls, camera: PinholeCamera, slopes: Slopes) -> list[Int[np.ndarray, " _"]]:
    """For each solid, the numbers of the camera's rays that it may meet."""
    centers, radii = around
    local = (centers - camera.camera_to_world[:3, 3]) @ camera.camera_to_world[:3, :3]
    across, ahead, radius = local[..., :2], local[..., 2:], radii[..., None]
    # Slopes of the two lines through the eye that touch a ball, seen from above and from aside.
    square = ahead * ahead - radius * radius
    reach = radius * np.sqrt(np.maximum(across * across + square, 0))
    least = ((across * ahead - reach) / square).min(axis=1)
    most = ((across * ahead + reach) / square).max(axis=1)
    near = (ahead - radius < 0.05).any(axis=1)  # too near to the camera's plane to tell
    return _within(np.where(near, -np.inf, least), np.where(near, np.inf, most), slopes)


def sunward_rays(
    around: Balls, point: Vector, sun: Float[np.ndarray, "3"], wanted: Bool[np.ndarray, " n"]
) -> list[Int[np.ndarray, " _"]]:
    """For each solid, the numbers of wanted points (n), above the ground, that it may shadow."""
    level = max(np.hypot(sun[0], sun[1]), 1e-6)
    aside = np.array((-sun[1], sun[0], 0), np.float32) / np.float32(level)
    axes = np.stack([aside, np.cross(sun, aside)], axis=1).astype(np.float32)
    centers, radii = around
    # Rays towards the sun's disc stray from its middle, most of them those from the ground.
    length = (centers[..., 2] + radii) / max(sun[2] - SUN_RADIUS, 0.05)
    radius = (radii + SUN_RADIUS * np.maximum(length, 0))[..., None]
    across, wanted = centers @ axes, np.flatnonzero(wanted)
    point = point.map(lambda c: c[wanted])
    places = [point.dot(Vector(*axis)) for axis in axes.T]
    least, most = (across - radius).min(axis=1), (across + radius).max(axis=1)
    return [wanted[each] for each in _within(least, most, places)]


def _within(least: Any, most: Any, places: Any) -> list[Int[np.ndarray, " _"]]:
    """For each solid, the numbers of those places on two axes that lie in its range."""
    if not len(least):
        return []
    least, most, (x, y) = least - MARGIN, most + MARGIN, places
    (left, bottom), (right, top) = least.min(axis=0), most.max(axis=0)
    near = np.flatnonzero((x >= left) & (x <= right) & (y >= bottom) & (y <= top))  # of any
    x, y = x[near], y[near]
    inside = x >= least[:, :1]
    inside &= x <= most[:, :1]
    inside &= y >= least[:, 1:]
    inside &= y <= most[:, 1:]
    return [near[row.nonzero()[0]] for row in inside]  # in half the time of np.flatnonzero
