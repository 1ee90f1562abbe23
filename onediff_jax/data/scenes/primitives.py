"""Convex solids that rays meet, for NumPy and jax.numpy, and vectors kept by coordinate.

Sphere, box, cylinder and cone have unit size around the origin; whoever scales and turns them takes
rays into their frame.  A capsule is given by its ends and its radius.
"""

import dataclasses
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


@dataclasses.dataclass(slots=True)
class Vector:
    """Many vectors, by coordinate: three arrays whose shapes are equal or broadcast.

    Not one array with an axis of three: XLA's CPU loops run along the longest axis, and stacking
    three numbers or reducing over them breaks those loops (measured: thirty times slower).
    """

    x: Any
    y: Any
    z: Any

    def __iter__(self) -> Iterator[Any]:
        return iter((self.x, self.y, self.z))

    def __add__(self, other: "Vector") -> "Vector":
        return Vector(self.x + other.x, self.y + other.y, self.z + other.z)

    def __sub__(self, other: "Vector") -> "Vector":
        return Vector(self.x - other.x, self.y - other.y, self.z - other.z)

    def __mul__(self, scale: Any) -> "Vector":
        """Scaled by numbers, or by one Vector's coordinates each by its own."""
        x, y, z = scale if isinstance(scale, Vector) else (scale, scale, scale)
        return Vector(self.x * x, self.y * y, self.z * z)

    def dot(self, other: "Vector") -> Any:
        """Inner products."""
        return self.x * other.x + self.y * other.y + self.z * other.z

    def turn(self, cosine: Any, sine: Any) -> "Vector":
        """Turned about z."""
        return Vector(cosine * self.x - sine * self.y, sine * self.x + cosine * self.y, self.z)

    def map(self, function: Callable[..., Any], *others: "Vector") -> "Vector":
        """A function applied to each coordinate, with the same coordinate of the others."""
        return Vector(*map(function, self, *others))

    def fold(self, function: Callable[..., Any]) -> Any:
        """A function of two arguments folded over the coordinates."""
        return function(function(self.x, self.y), self.z)


class Primitive(NamedTuple):
    """A convex solid of unit size around the origin.

    `distance(origin, direction, xp)` is the length along a ray to where it enters, infinite where
    it does not; `normal(point, xp)` is a vector along the outer normal at a point of the surface.
    """

    distance: Callable[..., Any]
    normal: Callable[..., Vector]


def _sphere_distance(origin: Vector, direction: Vector, xp: types.ModuleType) -> Any:
    # From the ray's point nearest the centre: the usual discriminant cancels in float32 from afar.
    squared = direction.dot(direction)
    nearest = -origin.dot(direction) / squared
    gap = origin + direction * nearest
    inside = 1 - gap.dot(gap)
    entry = nearest - xp.sqrt(xp.maximum(inside, 0) / squared)
    return xp.where((inside > 0) & (entry > 0), entry, xp.inf)


def _sphere_normal(point: Vector, xp: types.ModuleType) -> Vector:
    return point


def box_distance(origin: Vector, direction: Vector, xp: types.ModuleType) -> Any:
    """Length along rays to where they enter the box between -1 and 1 on every axis."""
    inverse = direction.map(lambda c: 1 / xp.where(xp.abs(c) < 1e-12, 1e-12, c))
    middle, reach = origin * inverse * -1, inverse.map(xp.abs)
    entry, leave = (middle - reach).fold(xp.maximum), (middle + reach).fold(xp.minimum)
    return xp.where((entry < leave) & (entry > 0), entry, xp.inf)


def box_normal(point: Vector, xp: types.ModuleType) -> Vector:
    """The outer normal at points of the box's surface."""
    largest = point.map(xp.abs).fold(xp.maximum)
    return point.map(lambda c: xp.where(xp.abs(c) >= largest, xp.sign(c), 0))


def tapered_distance(
    origin: Vector, direction: Vector, xp: types.ModuleType, top: Any = 1.0
) -> Any:
    """Length along rays to an upright solid between z = -1 and 1, round, of radius 1 at its foot.

    Its radius falls evenly to `top`: 1 is a cylinder, 0 a cone.
    """
    # From the ray's point nearest the centre, as for the sphere.
    start = -origin.dot(direction) / direction.dot(direction)
    origin = origin + direction * start
    middle, slope = (1 + top) / 2, (top - 1) / 2
    radius, change = middle + slope * origin.z, slope * direction.z
    # The infinite side is entered where a t² + 2 b t + c, negative inside, falls through zero.
    a = direction.x * direction.x + direction.y * direction.y - change * change
    b = origin.x * direction.x + origin.y * direction.y - radius * change
    c = origin.x * origin.x + origin.y * origin.y - radius * radius
    square = b * b - a * c
    root = xp.sqrt(xp.maximum(square, 0))
    a = xp.where(xp.abs(a) < 1e-12, 1e-12, a)
    falling = xp.where(b < 0, root - b, 1)
    side = xp.where(b < 0, c / falling, -(b + root) / a)
    sided = (square > 0) & (xp.abs(origin.z + side * direction.z) <= 1)
    # Where not through its side, a ray enters through the end that it comes from.
    ascent = xp.where(xp.abs(direction.z) < 1e-12, 1e-12, direction.z)
    end = -xp.sign(ascent)
    cap = (end - origin.z) / ascent
    x, y, reach = origin.x + cap * direction.x, origin.y + cap * direction.y, middle + slope * end
    capped = x * x + y * y < reach * reach
    entry = start + xp.where(sided, side, xp.where(capped, cap, xp.inf))
    return xp.where(entry > 0, entry, xp.inf)


def tapered_normal(point: Vector, xp: types.ModuleType, top: Any = 1.0) -> Vector:
    """A vector along the outer normal at points of a tapered solid's surface."""
    middle, slope = (1 + top) / 2, (top - 1) / 2
    radius = middle + slope * point.z
    on_side = xp.abs(point.x * point.x + point.y * point.y - radius * radius)
    on_end = on_side > 2 * (1 - xp.abs(point.z))  # both are 0 on their own surface
    return Vector(
        xp.where(on_end, 0, point.x),
        xp.where(on_end, 0, point.y),
        xp.where(on_end, xp.sign(point.z), -slope * radius),
    )


def capsule_distance(
    start: Vector,
    end: Vector,
    radius: Any,
    origin: Vector,
    direction: Vector,
    xp: types.ModuleType,
) -> Any:
    """Length along rays to where they enter all that lies within `radius` of a line.

    With both ends at one point it is a sphere.  Infinite for a miss and from inside.
    """
    axis, away = end - start, origin - start
    squared = direction.dot(direction)
    length, along = axis.dot(axis), axis.dot(direction)
    offset, nearing = axis.dot(away), direction.dot(away)
    # The side, as of an infinite cylinder, every term times the axis' squared length.
    a = xp.maximum(length * squared - along * along, 1e-9)
    b = length * nearing - offset * along
    c = length * (away.dot(away) - radius * radius) - offset * offset
    square = b * b - a * c
    side = -(b + xp.sqrt(xp.maximum(square, 0))) / a
    height = offset + side * along
    sided = (square > 0) & (height > 0) & (height < length)
    # Else the ball at the end that the side's point lies beyond.
    nearing = nearing - xp.where(height >= length, along, 0)
    ball = away.map(lambda p, q: p - xp.where(height >= length, q, 0), axis)
    gap = ball - direction * (nearing / squared)
    inside = radius * radius - gap.dot(gap)
    cap = -(nearing + xp.sqrt(xp.maximum(inside, 0) * squared)) / squared
    entry = xp.where(sided, side, xp.where(inside > 0, cap, xp.inf))
    return xp.where(entry > 0, entry, xp.inf)


def capsule_blocks(
    start: Vector,
    end: Vector,
    radius: Any,
    origin: Vector,
    direction: Vector,
    xp: types.ModuleType,
) -> Any:
    """Whether rays from outside a capsule meet it: whether they come within `radius` of its line.

    A third of the work of `capsule_distance`, for shadows.
    """
    axis, away = end - start, start - origin
    squared = direction.dot(direction)
    along, nearing = axis.dot(direction) / squared, direction.dot(away) / squared
    length = axis.dot(axis)
    # Of the line's points start + share * axis the one nearest to the ray's infinite line.
    squares = xp.maximum(length - along * along * squared, 1e-9)
    share = xp.clip((along * nearing * squared - axis.dot(away)) / squares, 0, 1)
    ahead = nearing + share * along
    gap = away + axis * share - direction * ahead
    return (gap.dot(gap) < radius * radius) & (ahead > 0)


def capsule_normal(start: Vector, end: Vector, point: Vector, xp: types.ModuleType) -> Vector:
    """A vector along the outer normal at points of a capsule's surface."""
    axis, away = end - start, point - start
    share = xp.clip(axis.dot(away) / xp.maximum(axis.dot(axis), 1e-12), 0, 1)
    return away - axis * share


PRIMITIVES: dict[str, Primitive] = {
    "sphere": Primitive(_sphere_distance, _sphere_normal),
    "box": Primitive(box_distance, box_normal),
}
