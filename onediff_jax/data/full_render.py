"""Pictures of the full scenes: boxes, cylinders, cones, balls, capsules, and what they are made of.

World, camera and light are those of `render`.  A pixel has five rays, one through its centre,
which alone decides depth, normal and instance.

b boxes   t tapered solids   c capsules   s = b + t + c solids   n pixels   h w picture
"""

import types
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from onediff_jax.data.primitives import (
    Vector,
    box_normal,
    capsule_normal,
    tapered_normal,
)
from onediff_jax.data.render import (
    FAR,
    OCCLUSION,
    SKY_HEIGHT,
    CameraArrays,
    linear_to_srgb,
    srgb_to_linear,
    sun_directions,
)
from onediff_jax.data.solids import Solids, kept, nearest, shadowed

# Of a pixel's five rays, in pixels from its centre: a square turned so that no two share a row or
# column, which resolves edges along the picture's sides as well as a grid of twenty-five.
OFFSETS = np.array([(0, 0), (-0.2, -0.4), (0.4, -0.2), (0.2, 0.4), (-0.4, 0.2)], np.float32)
SHINE = 0.55  # light of a glossy solid's highlight, added
SHARPNESS = 40  # exponent of the highlight (Blinn and Phong)


class Surroundings(NamedTuple):
    """Ground, sky and light; colours sRGB in [0, 1]."""

    ground: Float[Any, "3"]
    horizon: Float[Any, "3"]
    zenith: Float[Any, "3"]
    sun: Float[Any, "3"]  # unit vector towards the sun
    ambient: Float[Any, ""]  # share of ambient light


class Traced(NamedTuple):
    """What each of the pixels' rays meets."""

    depth: Float[Any, "5 n"]  # at most FAR
    owner: Int[Any, "5 n"]  # place of the solid, -1 for ground and sky
    normal: tuple[Float[Any, "5 n"], ...]
    color: tuple[Float[Any, "5 n"], ...]  # linear; of solids
    gloss: Float[Any, "5 n"]
    instance: Float[Any, "5 n"]


class Seen(NamedTuple):
    """What a camera sees; all but the colours at pixel centres."""

    image: Float[Any, "h w 3"]  # sRGB in [0, 1]
    depth: Float[Any, "h w"]  # along the optical axis, at most FAR
    normals: Float[Any, "h w 3"]  # outer, along the camera's axes (x right, y down, z forward)
    instances: Int[Any, "h w"]  # 0 is ground or sky


def rays(
    camera: CameraArrays, size: int, xp: types.ModuleType = np, offsets: np.ndarray = OFFSETS
) -> tuple[Vector, Vector]:
    """Origin (numbers) and directions (5 n) in the world; a length along a ray is a depth."""
    ticks = np.arange(size, dtype=np.float32) + np.float32(0.5 - size / 2)
    shape = (len(offsets), size, size)
    x = np.broadcast_to(ticks[None, None, :] + offsets[:, 0, None, None], shape)
    y = np.broadcast_to(ticks[None, :, None] + offsets[:, 1, None, None], shape)
    x, y = (xp.asarray(c.reshape(len(offsets), -1)) / (camera.focal * size) for c in (x, y))
    right, down, forward, origin = (Vector(*camera.camera_to_world[:3, i]) for i in range(4))
    return origin, right * x + down * y + forward


def _attributes(solids: Solids, xp: types.ModuleType) -> Float[Any, "s a"]:
    """All that shading needs to know of a solid, in one row."""
    b, t, c = map(len, (solids.boxes, solids.tapered, solids.capsules))
    upright = xp.concatenate([solids.boxes[:, :7], solids.tapered[:, :7]])
    # The angle's cosine and sine here and not for every ray, where they cost more than all else.
    turns = xp.stack([xp.cos(upright[:, 6]), xp.sin(upright[:, 6])], axis=1)
    still = xp.asarray(np.tile(np.array((1, 0), np.float32), (c, 1)))
    shape = xp.concatenate([xp.zeros_like(solids.boxes[:, 6]), solids.tapered[:, 7]])
    place = xp.concatenate([upright[:, :6], solids.capsules[:, :6]])
    family = xp.asarray(np.repeat(np.eye(3, dtype=np.float32), [b, t, c], axis=0))
    linear = [srgb_to_linear(colour, xp) for colour in (solids.color, solids.second)]
    single = (
        xp.concatenate([shape, solids.capsules[:, 6]]),
        solids.bands,
        solids.checks,
        solids.gloss,
        solids.instance.astype(xp.float32),
    )
    turns = xp.concatenate([turns, still])
    return xp.concatenate([place, turns, family, *linear, xp.stack(single, axis=1)], axis=1)


class _Hit(NamedTuple):
    """The solids that rays meet, as shading needs them; what ground and sky get is not used."""

    normal: Vector
    color: Vector
    gloss: Any
    instance: Any


def _hit(rows: Any, point: Vector, xp: types.ModuleType) -> _Hit:
    """Normal and material at points of solids, each of the solid whose attributes it is given."""
    first, last, (cosine, sine) = Vector(*rows[:3]), Vector(*rows[3:6]), rows[6:8]
    box, capsule = rows[8] > 0, rows[10] > 0
    shape, bands, checks, gloss, instance = rows[17:]
    inverse = last.map(lambda c: 1 / xp.where(capsule, 1, c))
    local = (point - first).turn(cosine, -sine) * inverse
    boxed, rounded = box_normal(local, xp), tapered_normal(local, xp, shape)
    normal = boxed.map(lambda p, q: xp.where(box, p, q), rounded)
    normal = (normal * inverse).turn(cosine, sine)
    bent = capsule_normal(first, last, point, xp)
    normal = normal.map(lambda p, q: kept(xp.where(capsule, q, p), xp), bent)
    normal = normal * kept(1 / xp.sqrt(xp.maximum(normal.dot(normal), 1e-12)), xp)

    # Bands run across a solid's height, from -1 to 1; a ball's and a capsule's along its axis.
    axis = last - first
    length = xp.sqrt(xp.maximum(axis.dot(axis), 1e-12))
    ball, radius = length < 1e-3, xp.where(capsule, shape, 1)
    up = axis.map(lambda c, d: xp.where(ball, d, c / length), Vector(0, 0, 1))
    span = xp.where(ball, 0, length) / 2 + radius
    height = xp.where(capsule, (point - (first + last) * 0.5).dot(up) / span, local.z)
    # Ends are in the last band for certain.
    banded = xp.floor(xp.clip((height + 1) / 2, 0, 0.999) * bands) % 2
    inside = local.map(lambda p, q: xp.where(capsule, q / radius, p), point - first)
    checked = sum(xp.floor(0.499 * c * checks + 0.25) for c in inside) % 2
    other = xp.where(bands > 0, banded, xp.where(checks > 0, checked, 0)) > 0.5
    other = kept(other, xp)
    color = Vector(*rows[11:14]).map(lambda p, q: xp.where(other, q, p), Vector(*rows[14:17]))
    return _Hit(normal, color, gloss, instance)


def _light(
    solids: Solids,
    surroundings: Surroundings,
    point: Vector,
    normal: Vector,
    owner: Any,
    sun: Vector,
    xp: types.ModuleType,
) -> tuple[Any, Any]:
    """Direct and ambient light in [0, 1] on points.

    As in `render`: the sun by Lambert's law and shadow; a convex solid does not shade itself.
    """
    dark = shadowed(solids, point, sun, owner, xp)
    direct = xp.where(dark, 0, xp.maximum(normal.dot(sun), 0))
    # What comes from below comes off the ground, which is darker than the sky; the ground itself
    # lacks the sky that the solids near it hide.
    ambient = 0.75 + 0.25 * normal.z
    for place, (*center, square) in zip(_occluding(solids), _occluders(solids, xp), strict=True):
        away = Vector(*center) - point
        squared = xp.maximum(away.dot(away), 1e-6)
        facing = xp.maximum(normal.dot(away) / xp.sqrt(squared), 0)
        hidden = OCCLUSION * facing * xp.minimum(square / squared, 1)
        ambient = ambient * (1 - xp.where(owner == place, 0, hidden))
    direct, ambient = (1 - surroundings.ambient) * direct, surroundings.ambient * ambient
    return kept(direct, xp), kept(ambient, xp)


def _occluding(solids: Solids) -> np.ndarray:
    """The places of the solids that hide the sky: of many capsules (a figure's) the first four."""
    first = len(solids.boxes) + len(solids.tapered)
    return np.r_[: first + min(len(solids.capsules), 4)]


def _occluders(solids: Solids, xp: types.ModuleType) -> Float[Any, "o 4"]:
    """Centre and squared radius of a ball for every solid that hides the sky; 0 where empty."""
    upright = xp.concatenate([solids.boxes[:, :6], solids.tapered[:, :6]])
    capsules = solids.capsules[:4]
    center = xp.concatenate([upright[:, :3], (capsules[:, :3] + capsules[:, 3:6]) / 2])
    radius = xp.concatenate([upright[:, 3:].min(axis=1), capsules[:, 6]])
    radius = xp.where(solids.instance[_occluding(solids)] > 0, radius, 0)
    return xp.concatenate([center, (radius * radius)[:, None]], axis=1)


def trace(solids: Solids, camera: CameraArrays, size: int, xp: types.ModuleType = np) -> Traced:
    """What the rays of a picture (size x size) meet."""
    origin, direction = rays(camera, size, xp)
    length, owner = nearest(solids, origin, direction, xp)
    falls = direction.z < -1e-6
    ground = xp.where(falls, -origin.z / xp.where(falls, direction.z, -1), xp.inf)
    solid = length < ground  # not ground or sky
    owner = kept(xp.where(solid, owner, -1), xp)
    depth = kept(xp.minimum(xp.minimum(length, ground), FAR), xp)

    point = (origin + direction * depth).map(lambda c: kept(c, xp))
    rows = [kept(column[owner], xp) for column in _attributes(solids, xp).T]
    hit = _hit(rows, point, xp)
    normal = hit.normal.map(lambda c, up: xp.where(solid, c, up), Vector(0, 0, 1))
    gloss, instance = (xp.where(solid, c, 0) for c in (hit.gloss, hit.instance))
    return Traced(depth, owner, tuple(normal), tuple(hit.color), gloss, instance)


def developed(
    solids: Solids,
    surroundings: Surroundings,
    camera: CameraArrays,
    traced: Traced,
    size: int,
    xp: types.ModuleType = np,
) -> Seen:
    """The picture of what was traced, in its light."""
    origin, direction = rays(camera, size, xp)
    sun = sun_directions(surroundings.sun, len(OFFSETS), xp)
    solid, falls, normal = traced.owner >= 0, direction.z < -1e-6, Vector(*traced.normal)
    point = origin + direction * traced.depth
    direct, ambient = _light(solids, surroundings, point, normal, traced.owner, sun, xp)

    plane, horizon, zenith = (Vector(*srgb_to_linear(c, xp)) for c in surroundings[:3])
    color = Vector(*traced.color).map(lambda c, p: xp.where(solid, c, p), plane)
    unit = direction * (-1 / xp.sqrt(direction.dot(direction)))
    middle = sun + unit
    # Not an integer power: squaring, XLA's CPU loops would compute what is squared twice each time.
    mirrored = xp.maximum(normal.dot(middle) / xp.sqrt(middle.dot(middle)), 1e-6)
    shine = SHINE * xp.exp(SHARPNESS * xp.log(mirrored)) * traced.gloss * (direct > 0)
    rise = -unit.z / SKY_HEIGHT
    sky = horizon + (zenith - horizon) * xp.clip(rise, 0, 1)
    light, shine = kept(direct + ambient, xp), kept(shine, xp)
    color = color.map(lambda c, s: xp.where(solid | falls, c * light + shine, s), sky)
    color = color.map(lambda c: kept(c, xp))

    image = [sum(c[i] for i in range(len(OFFSETS))) / len(OFFSETS) for c in color]
    axes = [Vector(*camera.camera_to_world[:3, i]) for i in range(3)]
    facing = normal.map(lambda c: xp.where(solid[0] | falls[0], c[0], 0))
    return Seen(
        image=linear_to_srgb(xp.stack(image, -1), xp).reshape(size, size, 3),
        depth=traced.depth[0].reshape(size, size),
        normals=xp.stack([facing.dot(axis) for axis in axes], -1).reshape(size, size, 3),
        instances=xp.round(traced.instance[0]).astype(xp.int32).reshape(size, size),
    )


def render(
    solids: Solids,
    surroundings: Surroundings,
    camera: CameraArrays,
    size: int,
    xp: types.ModuleType = np,
) -> Seen:
    """The picture (size x size) that a camera takes of solids, with what it shows.

    With xp = jax.numpy, compile and map `trace` and `developed` one by one: XLA would compute half
    of the first again and again within the loops of the second (measured: ten times slower).
    """
    traced = trace(solids, camera, size, xp)
    return developed(solids, surroundings, camera, traced, size, xp)
