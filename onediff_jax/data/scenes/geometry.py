"""Vectors kept by coordinate, and the pinhole camera of a scene.

World: right-handed, z up, the ground is z = 0; lengths are in world units.  Camera: OpenCV axes
(x right, y down, z forward).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

Triple = tuple[float, float, float]


@dataclasses.dataclass(slots=True)
class Vector:
    """Many vectors, by coordinate: three arrays whose shapes are equal or broadcast."""

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


@dataclasses.dataclass(frozen=True)
class PinholeCamera:
    """A camera held level, with square pixels, that looks along the middle of its square image."""

    eye: Triple
    target: Triple
    field_of_view: float  # degrees

    @property
    def focal(self) -> float:
        """Focal length over the image's width."""
        return 0.5 / math.tan(math.radians(self.field_of_view) / 2)

    def axes(self) -> tuple[Triple, Triple, Triple]:
        """The camera's x (right), y (down) and z (forward) in the world."""
        forward = tuple(t - e for t, e in zip(self.target, self.eye, strict=True))
        x, y, z = (c / math.hypot(*forward) for c in forward)
        level = math.hypot(x, y)
        return (y / level, -x / level, 0.0), (z * x / level, z * y / level, -level), (x, y, z)

    @functools.cached_property
    def camera_to_world(self) -> Float[np.ndarray, "4 4"]:
        """The camera's pose."""
        pose = np.eye(4, dtype=np.float32)
        pose[:3] = np.array((*self.axes(), self.eye)).T
        return pose

    def focal_in_pixels(self, size: int) -> np.float32:
        """Focal length in pixels of a size x size image."""
        return np.float32(self.focal) * size

    def intrinsics(self, size: int) -> Float[np.ndarray, "3 3"]:
        """K in pixels of a size x size image; the centre of the first pixel is (0.5, 0.5)."""
        focal, middle = self.focal_in_pixels(size), size / 2
        return np.array([(focal, 0, middle), (0, focal, middle), (0, 0, 1)], np.float32)

    def project(
        self, points: Float[np.ndarray, "n 3"]
    ) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
        """Where points of the world are in the image, from 0 to 1, and how far ahead."""
        local = (points - np.array(self.eye)) @ np.array(self.axes()).T
        return local[:, :2] / local[:, 2:] * self.focal + 0.5, local[:, 2]


def orbiting_camera(
    target: Triple, distance: float, azimuth: float, elevation: float, field_of_view: float
) -> PinholeCamera:
    """A camera at a distance from its target; angles in radians, the field of view in degrees."""
    level = math.cos(elevation)
    toward = (level * math.cos(azimuth), level * math.sin(azimuth), math.sin(elevation))
    x, y, z = (t + distance * c for t, c in zip(target, toward, strict=True))
    return PinholeCamera((x, y, z), target, field_of_view)
