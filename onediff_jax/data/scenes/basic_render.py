"""Images of analytic scenes with exact depth and instances: a ray tracer for NumPy and jax.numpy.

World: right-handed, z up, the ground is z = 0; lengths are in world units.  Camera: OpenCV axes
(x right, y down, z forward).  An object is a unit primitive, scaled by `half`, turned by `yaw`
about z and moved to `center`: rays are taken into its frame, where lengths along a ray keep their
value.

k objects   m samples a pixel   n pixels   h w image
"""

import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from onediff_jax.data.scenes.primitives import PRIMITIVES, Vector

MAX_OBJECTS = 3
FAR = 20.0  # depth of the sky, and of ground that lies further
SUN_RADIUS = 0.09  # of the sun's disc, in radians; twenty times the real one, for soft shadows
OCCLUSION = 0.75  # share of the ambient light that an object takes from a point it touches
SKY_HEIGHT = 0.3  # sine of the elevation at which the sky has reached its zenith's color


class CameraArrays(NamedTuple):
    """A pinhole camera with square pixels that looks along the middle of its square image."""

    focal: Float[Any, ""]  # focal length over the image's width
    camera_to_world: Float[Any, "4 4"]


class SceneArrays(NamedTuple):
    """A scene in arrays of fixed shape, inactive beyond its last object; colors sRGB in [0, 1]."""

    kind: Int[Any, "k"]  # row of PRIMITIVES
    active: Bool[Any, "k"]
    center: Float[Any, "k 3"]
    half: Float[Any, "k 3"]  # half extents; a sphere has its radius three times
    yaw: Float[Any, "k"]  # radians about z
    albedo: Float[Any, "k 3"]
    ground: Float[Any, "3"]
    horizon: Float[Any, "3"]
    zenith: Float[Any, "3"]
    sun: Float[Any, "3"]  # unit vector towards the sun
    ambient: Float[Any, ""]  # share of ambient light in [0, 1]; the sun gives the rest
    camera: CameraArrays


class Rendered(NamedTuple):
    """What a camera sees; depth and instances at pixel centres, color averaged over the pixel."""

    image: Float[Any, "h w 3"]  # sRGB in [0, 1]
    depth: Float[Any, "h w"]  # along the optical axis, at most FAR
    instances: Int[Any, "h w"]  # 0 is ground or sky, i is the scene's object i, counted from 1


class _Frames(NamedTuple):
    """The objects' own frames, in arrays that broadcast against rays."""

    center: Vector
    inverse: Vector  # of the half extents
    cosine: Any
    sine: Any

    def enter(self, vector: Vector) -> Vector:
        """Vectors of the world as the objects' frames see them."""
        return vector.turn(self.cosine, -self.sine) * self.inverse

    def leave(self, normal: Vector) -> Vector:
        """Normals in the world; they scale inversely."""
        return (normal * self.inverse).turn(self.cosine, self.sine)


def _beside(values: Any, rays: Any) -> Any:
    """Numbers of the objects (k), shaped to broadcast against arrays shaped as `rays` is."""
    return values.reshape(values.shape + (1,) * rays.ndim)


def _owned(values: Any, owner: Any, xp: types.ModuleType) -> Any:
    """Of the objects' numbers (k), its owner's for each ray; the first where there is no owner."""
    chosen = values[0]  # no values[owner]: gathers do not fuse
    for i in range(1, len(values)):
        chosen = xp.where(owner == i, values[i], chosen)
    return chosen


def _frames(scene: SceneArrays, spread: Callable[[Any], Any], xp: types.ModuleType) -> _Frames:
    """The frames of all objects or of a choice of them, as `spread` lays out numbers of objects."""
    center, inverse = (Vector(*map(spread, v.T)) for v in (scene.center, 1 / scene.half))
    return _Frames(center, inverse, spread(xp.cos(scene.yaw)), spread(xp.sin(scene.yaw)))


def srgb_to_linear(color: Float[Any, "*shape"], xp: types.ModuleType = np) -> Float[Any, "*shape"]:
    """Light in [0, 1] of sRGB values in [0, 1]."""
    curve = ((color + 0.055) / 1.055) ** 2.4
    return xp.where(color <= 0.04045, color / 12.92, curve)


def linear_to_srgb(light: Float[Any, "*shape"], xp: types.ModuleType = np) -> Float[Any, "*shape"]:
    """The sRGB values in [0, 1] of light; light outside [0, 1] is clipped."""
    light = xp.clip(light, 0, 1)
    curve = 1.055 * xp.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055
    return xp.where(light <= 0.0031308, 12.92 * light, curve)


def intrinsics(camera: CameraArrays, size: int, xp: types.ModuleType = np) -> Float[Any, "3 3"]:
    """K in pixels of a size x size image; the centre of the first pixel is (0.5, 0.5)."""
    focal, middle = camera.focal * size, xp.full_like(camera.focal, size / 2)
    zero, one = xp.zeros_like(focal), xp.ones_like(focal)
    return xp.stack([focal, zero, middle, zero, focal, middle, zero, zero, one]).reshape(3, 3)


def camera_rays(
    camera: CameraArrays, size: int, supersample: int = 1, xp: types.ModuleType = np
) -> tuple[Vector, Vector]:
    """Origin (numbers) and directions (m n) in the world of the rays of a size x size image.

    Of a pixel's m = supersample² rays the middle one, if m is odd, goes through its centre; the
    pixels go row by row.  A direction has length 1 along the optical axis: a length along a ray is
    a depth.
    """
    ticks = (xp.arange(size * supersample, dtype=xp.float32) + 0.5) / supersample - size / 2
    ticks = (ticks / (camera.focal * size)).reshape(size, supersample).T
    shape = (supersample, supersample, size, size)  # row and column in the pixel, and of the pixel
    x = xp.broadcast_to(ticks[None, :, None, :], shape).reshape(supersample**2, size**2)
    y = xp.broadcast_to(ticks[:, None, :, None], shape).reshape(supersample**2, size**2)
    right, down, forward, origin = (Vector(*camera.camera_to_world[:3, i]) for i in range(4))
    return origin, right * x + down * y + forward


def distances(
    scene: SceneArrays, origin: Vector, direction: Vector, xp: types.ModuleType = np
) -> Float[Any, "k *rays"]:
    """Length along rays to where they enter each object; infinite for a miss and if inactive."""
    rays = direction.x
    frames = _frames(scene, lambda v: _beside(v, rays), xp)
    origin, direction = frames.enter(origin - frames.center), frames.enter(direction)
    length = xp.inf
    for row, primitive in enumerate(PRIMITIVES.values()):
        chosen = _beside(scene.active & (scene.kind == row), rays)
        length = xp.where(chosen, primitive.distance(origin, direction, xp), length)
    return length


def _normals(scene: SceneArrays, point: Vector, owner: Any, xp: types.ModuleType) -> Vector:
    """Outer unit normals at points of objects' surfaces, each of the object that owns it."""
    frames = _frames(scene, lambda v: _owned(v, owner, xp), xp)
    kind = _owned(scene.kind, owner, xp)
    local = frames.enter(point - frames.center)
    normal = local
    for row, primitive in enumerate(PRIMITIVES.values()):
        new = primitive.normal(local, xp)
        normal = new.map(lambda a, b, row=row: xp.where(kind == row, a, b), normal)
    normal = frames.leave(normal)
    return normal * (1 / xp.sqrt(xp.maximum(normal.dot(normal), 1e-12)))


def sun_directions(sun: Any, samples: int, xp: types.ModuleType) -> Vector:
    """Directions (m 1) to points spread evenly over the sun's disc."""
    turn = np.arange(samples)[:, None] * np.pi * (3 - np.sqrt(5))  # the golden angle
    radius = SUN_RADIUS * np.sqrt((np.arange(samples)[:, None] + 0.5) / samples) * (samples > 1)
    across, up = (xp.asarray(radius * f(turn), dtype=xp.float32) for f in (np.cos, np.sin))
    sun = Vector(*sun)
    level = xp.sqrt(xp.maximum(sun.x**2 + sun.y**2, 1e-12))
    first = Vector(-sun.y / level, sun.x / level, 0 * level)
    second = Vector(-sun.z * first.y, sun.z * first.x, level)
    return sun + first * across + second * up


def _light(
    scene: SceneArrays, point: Vector, normal: Vector, owner: Any, sun: Vector, xp: types.ModuleType
) -> Any:
    """Light in [0, 1] on points: the sun by Lambert's law and shadow, and ambient light.

    `owner` is the object that a point lies on, -1 for the ground.  An object is left out of its own
    shadow: a convex solid does not shade itself where it faces the sun, and no offset is needed.
    """
    objects = _beside(xp.arange(len(scene.kind)), owner)
    other = _beside(scene.active, owner) & (objects != owner)
    blocked = xp.where(other, distances(scene, point, sun + point * 0, xp), xp.inf).min(axis=0)
    direct = xp.where(blocked < xp.inf, 0, xp.maximum(normal.dot(sun), 0))

    # An object hides from a point the part of the sky that a ball of its size would.
    away = Vector(*(_beside(c, owner) for c in scene.center.T)) - point
    squared = xp.maximum(away.dot(away), 1e-6)
    facing = xp.maximum(normal.dot(away) / xp.sqrt(squared), 0)
    ball = _beside(scene.half.min(axis=1) ** 2, owner)
    hidden = xp.where(other, OCCLUSION * facing * xp.minimum(ball / squared, 1), 0)
    # What comes from below comes off the ground, which is darker than the sky.
    ambient = (0.75 + 0.25 * normal.z) * (1 - xp.minimum(hidden.sum(axis=0), 1))
    return (1 - scene.ambient) * direct + scene.ambient * ambient


def render(
    scene: SceneArrays, size: int, supersample: int = 3, xp: types.ModuleType = np
) -> Rendered:
    """The image (size x size) of one scene, with its depth and instances.

    `supersample` is odd, so that a pixel's middle ray goes through its centre.  Each ray of a pixel
    sees the sun from another point of its disc.  With xp = jax.numpy it can be compiled and mapped
    over scenes (and over cameras, by `scene._replace(camera=...)`).
    """
    if supersample % 2 == 0:
        raise ValueError(
            f"supersample={supersample} puts no ray through a pixel's centre; "
            f"use {supersample - 1} or {supersample + 1}."
        )
    samples = supersample**2
    origin, direction = camera_rays(scene.camera, size, supersample, xp)
    sun = sun_directions(scene.sun, samples, xp)

    length = distances(scene, origin, direction, xp)
    nearest = length.min(axis=0)
    # The first object at that distance.  Not by argmin: XLA fuses that with its input, and slowly.
    objects = _beside(xp.arange(len(scene.kind)), nearest)
    owner = xp.where(length <= nearest, objects, len(scene.kind)).min(axis=0)
    falls = direction.z < -1e-6
    ground = xp.where(falls, -origin.z / xp.where(falls, direction.z, -1), xp.inf)
    solid = nearest < ground  # an object, not ground or sky
    owner = xp.where(solid, owner, -1)
    depth = xp.minimum(xp.minimum(nearest, ground), FAR)

    # Ground beyond FAR is lit as at FAR: no object is there to shade it.
    point = origin + direction * depth
    normal = _normals(scene, point, owner, xp)
    normal = normal.map(lambda c, up: xp.where(solid, c, up), Vector(0, 0, 1))
    albedo = Vector(*(_owned(c, owner, xp) for c in srgb_to_linear(scene.albedo, xp).T))
    plane, horizon, zenith = (
        Vector(*srgb_to_linear(c, xp)) for c in (scene.ground, scene.horizon, scene.zenith)
    )
    color = albedo.map(lambda c, p: xp.where(solid, c, p), plane)
    color = color * _light(scene, point, normal, owner, sun, xp)
    height = direction.z / xp.sqrt(direction.dot(direction)) / SKY_HEIGHT
    sky = horizon + (zenith - horizon) * xp.clip(height, 0, 1)
    color = color.map(lambda c, s: xp.where(solid | falls, c, s), sky)

    image = xp.stack([c.mean(axis=0) for c in color], axis=-1)
    middle = samples // 2
    return Rendered(
        image=linear_to_srgb(image, xp).reshape(size, size, 3),
        depth=depth[middle].reshape(size, size),
        instances=(owner[middle] + 1).astype(xp.int32).reshape(size, size),
    )
