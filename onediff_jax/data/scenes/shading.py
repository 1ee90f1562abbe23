"""What solids are made of, the light around them, and its colors.

s solids   k points   o solids that hide the sky
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from onediff_jax.data.scenes.geometry import Vector
from onediff_jax.data.scenes.intersections import box_normal, capsule_normal, tapered_normal
from onediff_jax.data.scenes.solids import Solids

SUN_RADIUS = 0.09  # of the sun's disc, in radians; twenty times the real one, for soft shadows
OCCLUSION = 0.75  # share of the ambient light that an object takes from a point it touches


def srgb_to_linear(color: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Light in [0, 1] of sRGB values in [0, 1]."""
    curve = ((color + 0.055) / 1.055) ** 2.4
    return np.where(color <= 0.04045, color / 12.92, curve)


def linear_to_srgb(light: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """The sRGB values in [0, 1] of light; light outside [0, 1] is clipped."""
    light = np.clip(light, 0, 1)
    curve = 1.055 * np.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055
    return np.where(light <= 0.0031308, 12.92 * light, curve)


def sun_directions(sun: Float[np.ndarray, "3"], samples: int) -> Vector:
    """Directions (samples) to points spread evenly over the sun's disc."""
    turn = np.arange(samples) * np.pi * (3 - np.sqrt(5))  # the golden angle
    radius = SUN_RADIUS * np.sqrt((np.arange(samples) + 0.5) / samples)
    across, up = (np.asarray(radius * f(turn), np.float32) for f in (np.cos, np.sin))
    middle = Vector(*sun)
    level = np.sqrt(np.maximum(middle.x**2 + middle.y**2, 1e-12))
    first = Vector(-middle.y / level, middle.x / level, 0 * level)
    second = Vector(-middle.z * first.y, middle.z * first.x, level)
    return middle + first * across + second * up


def attributes(solids: Solids) -> Float[np.ndarray, "s a"]:
    """All that shading needs to know of a solid, in one row."""
    b, t, c = map(len, solids[:3])
    upright = np.concatenate([solids.boxes[:, :7], solids.tapered[:, :7]])
    turns = np.stack([np.cos(upright[:, 6]), np.sin(upright[:, 6])], axis=1)
    turns = np.concatenate([turns, np.tile(np.array((1, 0), np.float32), (c, 1))])
    place = np.concatenate([upright[:, :6], solids.capsules[:, :6]])
    shape = np.concatenate([np.zeros(b, np.float32), solids.tapered[:, 7], solids.capsules[:, 6]])
    family = np.repeat(np.eye(3, dtype=np.float32), [b, t, c], axis=0)
    linear = [srgb_to_linear(color) for color in (solids.color, solids.second)]
    single = np.stack([shape, solids.bands, solids.checks, solids.gloss], axis=1)
    return np.concatenate([place, turns, family, *linear, single], axis=1)


class Surface(NamedTuple):
    """Points of solids, as light needs them; colors linear."""

    normal: Vector
    color: Vector
    gloss: Float[np.ndarray, " k"]


def surface_of(rows: Float[np.ndarray, "a k"], point: Vector) -> Surface:
    """Normal and material at points of solids, each of the solid whose attributes it is given."""
    first, last, (cosine, sine) = Vector(*rows[:3]), Vector(*rows[3:6]), rows[6:8]
    box, capsule = rows[8] > 0, rows[10] > 0
    shape, bands, checks, gloss = rows[17:]
    inverse = last.map(lambda c: 1 / np.where(capsule, 1, c))
    local = (point - first).turn(cosine, -sine) * inverse
    boxed, rounded = box_normal(local), tapered_normal(local, shape)
    normal = boxed.map(lambda p, q: np.where(box, p, q), rounded)
    normal = (normal * inverse).turn(cosine, sine)
    bent = capsule_normal(first, last, point)
    normal = normal.map(lambda p, q: np.where(capsule, q, p), bent)
    normal = normal * (1 / np.sqrt(np.maximum(normal.dot(normal), 1e-12)))

    # Bands run across a solid's height, from -1 to 1; a ball's and a capsule's along its axis.
    axis = last - first
    length = np.sqrt(np.maximum(axis.dot(axis), 1e-12))
    ball, radius = length < 1e-3, np.where(capsule, shape, 1)
    up = axis.map(lambda c, d: np.where(ball, d, c / length), Vector(0, 0, 1))
    span = np.where(ball, 0, length) / 2 + radius
    height = np.where(capsule, (point - (first + last) * 0.5).dot(up) / span, local.z)
    # Ends are in the last band for certain.
    banded = np.floor(np.clip((height + 1) / 2, 0, 0.999) * bands) % 2
    inside = local.map(lambda p, q: np.where(capsule, q / radius, p), point - first)
    checked = sum(np.floor(0.499 * c * checks + 0.25) for c in inside) % 2
    other = np.where(bands > 0, banded, np.where(checks > 0, checked, 0)) > 0.5
    color = Vector(*rows[11:14]).map(lambda p, q: np.where(other, q, p), Vector(*rows[14:17]))
    return Surface(normal, color, gloss)


def _occluders(solids: Solids) -> Float[np.ndarray, "o 4"]:
    """Centres and squared radii of balls that hide the sky as the first solids do.

    Of many capsules (a figure's) only the first four do.
    """
    upright = np.concatenate([solids.boxes[:, :6], solids.tapered[:, :6]])
    capsules = solids.capsules[:4]
    center = np.concatenate([upright[:, :3], (capsules[:, :3] + capsules[:, 3:6]) / 2])
    radius = np.concatenate([upright[:, 3:].min(axis=1), capsules[:, 6]])
    return np.concatenate([center, (radius * radius)[:, None]], axis=1)


def ambient_light(
    solids: Solids,
    point: Vector,
    normal: Vector,
    owner: Int[np.ndarray, " k"],
    numbers: Int[np.ndarray, " s"],
) -> Float[np.ndarray, " k"]:
    """Ambient light in [0, 1] on points; a convex solid does not hide the sky from itself.

    `owner` is the solid that a point lies on, as `numbers` counts the solids.
    """
    # What comes from below comes off the ground, which is darker than the sky; the ground itself
    # lacks the sky that the solids near it hide.
    light = 0.75 + 0.25 * normal.z
    for number, (*center, square) in zip(numbers, _occluders(solids), strict=False):
        away = Vector(*center) - point
        squared = np.maximum(away.dot(away), 1e-6)
        facing = np.maximum(normal.dot(away), 0) / np.sqrt(squared)
        hidden = OCCLUSION * facing * np.minimum(square / squared, 1)
        light = light * (1 - np.where(owner == number, 0, hidden))
    return light
