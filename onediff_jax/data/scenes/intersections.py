"""Where rays enter convex solids, and the normals there.

Box, cylinder and cone have unit size around the origin; whoever scales and turns them takes rays
into their frame.  A capsule is given by its ends and its radius.
"""

from typing import Any

import numpy as np

from onediff_jax.data.scenes.geometry import Vector


def box_distance(origin: Vector, direction: Vector) -> Any:
    """Length along rays to where they enter the box between -1 and 1 on every axis."""
    inverse = direction.map(lambda c: 1 / np.where(np.abs(c) < 1e-12, 1e-12, c))
    middle, reach = origin * inverse * -1, inverse.map(np.abs)
    entry, leave = (middle - reach).fold(np.maximum), (middle + reach).fold(np.minimum)
    return np.where((entry < leave) & (entry > 0), entry, np.inf)


def box_normal(point: Vector) -> Vector:
    """The outer normal at points of the box's surface."""
    largest = point.map(np.abs).fold(np.maximum)
    return point.map(lambda c: np.where(np.abs(c) >= largest, np.sign(c), 0))


def tapered_distance(origin: Vector, direction: Vector, top: Any) -> Any:
    """Length along rays to an upright solid between z = -1 and 1, round, of radius 1 at its foot.

    Its radius falls evenly to `top`: 1 is a cylinder, 0 a cone.
    """
    # From the ray's point nearest the centre: the usual terms cancel in float32 from afar.
    start = -origin.dot(direction) / direction.dot(direction)
    origin = origin + direction * start
    middle, slope = (1 + top) / 2, (top - 1) / 2
    radius, change = middle + slope * origin.z, slope * direction.z
    # The infinite side is entered where a t² + 2 b t + c, negative inside, falls through zero.
    a = direction.x * direction.x + direction.y * direction.y - change * change
    b = origin.x * direction.x + origin.y * direction.y - radius * change
    c = origin.x * origin.x + origin.y * origin.y - radius * radius
    square = b * b - a * c
    root = np.sqrt(np.maximum(square, 0))
    a = np.where(np.abs(a) < 1e-12, 1e-12, a)
    falling = np.where(b < 0, root - b, 1)
    side = np.where(b < 0, c / falling, -(b + root) / a)
    sided = (square > 0) & (np.abs(origin.z + side * direction.z) <= 1)
    # Where not through its side, a ray enters through the end that it comes from.
    ascent = np.where(np.abs(direction.z) < 1e-12, 1e-12, direction.z)
    end = -np.sign(ascent)
    cap = (end - origin.z) / ascent
    x, y, reach = origin.x + cap * direction.x, origin.y + cap * direction.y, middle + slope * end
    capped = x * x + y * y < reach * reach
    entry = start + np.where(sided, side, np.where(capped, cap, np.inf))
    return np.where(entry > 0, entry, np.inf)


def tapered_normal(point: Vector, top: Any) -> Vector:
    """A vector along the outer normal at points of a tapered solid's surface."""
    middle, slope = (1 + top) / 2, (top - 1) / 2
    radius = middle + slope * point.z
    on_side = np.abs(point.x * point.x + point.y * point.y - radius * radius)
    on_end = on_side > 2 * (1 - np.abs(point.z))  # both are 0 on their own surface
    return Vector(
        np.where(on_end, 0, point.x),
        np.where(on_end, 0, point.y),
        np.where(on_end, np.sign(point.z), -slope * radius),
    )


def capsule_distance(
    start: Vector,
    end: Vector,
    radius: Any,
    origin: Vector,
    direction: Vector,
) -> Any:
    """Length along rays to where they enter all that lies within `radius` of a line.

    With both ends at one point it is a sphere.  Infinite for a miss and from inside.
    """
    axis, away = end - start, origin - start
    squared = direction.dot(direction)
    length, along = axis.dot(axis), axis.dot(direction)
    offset, nearing = axis.dot(away), direction.dot(away)
    # The side, as of an infinite cylinder, every term times the axis' squared length.
    a = np.maximum(length * squared - along * along, 1e-9)
    b = length * nearing - offset * along
    c = length * (away.dot(away) - radius * radius) - offset * offset
    square = b * b - a * c
    side = -(b + np.sqrt(np.maximum(square, 0))) / a
    height = offset + side * along
    sided = (square > 0) & (height > 0) & (height < length)
    # Else the ball at the end that the side's point lies beyond.
    nearing = nearing - np.where(height >= length, along, 0)
    ball = away.map(lambda p, q: p - np.where(height >= length, q, 0), axis)
    gap = ball - direction * (nearing / squared)
    inside = radius * radius - gap.dot(gap)
    cap = -(nearing + np.sqrt(np.maximum(inside, 0) * squared)) / squared
    entry = np.where(sided, side, np.where(inside > 0, cap, np.inf))
    return np.where(entry > 0, entry, np.inf)


def capsule_blocks(
    start: Vector,
    end: Vector,
    radius: Any,
    origin: Vector,
    direction: Vector,
) -> Any:
    """Whether rays from outside a capsule meet it: whether they come within `radius` of its line.

    A third of the work of `capsule_distance`, for shadows.
    """
    axis, away = end - start, start - origin
    squared = direction.dot(direction)
    along, nearing = axis.dot(direction) / squared, direction.dot(away) / squared
    length = axis.dot(axis)
    # Of the line's points start + share * axis the one nearest to the ray's infinite line.
    squares = np.maximum(length - along * along * squared, 1e-9)
    share = np.clip((along * nearing * squared - axis.dot(away)) / squares, 0, 1)
    ahead = nearing + share * along
    gap = away + axis * share - direction * ahead
    return (gap.dot(gap) < radius * radius) & (ahead > 0)


def capsule_normal(start: Vector, end: Vector, point: Vector) -> Vector:
    """A vector along the outer normal at points of a capsule's surface."""
    axis, away = end - start, point - start
    share = np.clip(axis.dot(away) / np.maximum(axis.dot(axis), 1e-12), 0, 1)
    return away - axis * share
