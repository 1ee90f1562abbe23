"""Images of scenes: boxes, cylinders, cones, balls, capsules, and what they are made of.

A pixel's ray through its centre decides depth, normal and instance; where the image changes, four
more rays share in its color.

n rays, of all shots one after the other   h w image
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

from onediff_jax.data.scenes.culling import (
    Balls,
    Slopes,
    bounding_balls,
    seen_rays,
    sunward_rays,
)
from onediff_jax.data.scenes.geometry import PinholeCamera, Triple, Vector
from onediff_jax.data.scenes.shading import (
    ambient_light,
    attributes,
    linear_to_srgb,
    srgb_to_linear,
    sun_directions,
    surface_of,
)
from onediff_jax.data.scenes.solids import (
    Pairs,
    Solids,
    entries,
    first_entries,
    join_solids,
    pairs_of,
    shadowed_rays,
)

FAR = 20.0  # depth of the sky, and of ground that lies further
SKY_HEIGHT = 0.3  # sine of the elevation at which the sky has reached its zenith's color
# Of a pixel's five rays, in pixels from its centre: a square turned so that no two share a row or
# column, which resolves edges along the image's sides as well as a grid of twenty-five.
OFFSETS = np.array([(0, 0), (-0.2, -0.4), (0.4, -0.2), (0.2, 0.4), (-0.4, 0.2)], np.float32)
SHINE = 0.55  # light of a glossy solid's highlight, added
SHARPNESS = 40  # exponent of the highlight (Blinn and Phong)
CONTRAST = 0.08  # difference of neighbours from which a pixel gets all its rays, of 1
SOFTNESS = 32  # the edge of a shadow is at most this part of the image on either side


class Light(NamedTuple):
    """Ground, sky and sun; colors sRGB in [0, 1]."""

    ground: Triple
    horizon: Triple
    zenith: Triple
    sun: Triple  # unit vector towards it
    ambient: float  # share of ambient light; the sun gives the rest


class Seen(NamedTuple):
    """What a camera sees; all but the colors at pixel centres."""

    image: Float[np.ndarray, "h w 3"]  # sRGB in [0, 1]
    depth: Float[np.ndarray, "h w"]  # along the optical axis, at most FAR
    normals: Float[np.ndarray, "h w 3"]  # outer, by the camera's axes (x right, y down, z forward)
    instances: Int[np.ndarray, "h w"]  # 0 is ground or sky


class Shot(NamedTuple):
    """Solids in their light, and the camera that looks at them."""

    solids: Solids
    light: Light
    camera: PinholeCamera


def central_slopes(camera: PinholeCamera, size: int) -> Slopes:
    """Of the rays through the centres of all pixels, row by row."""
    ticks = np.arange(size, dtype=np.float32) + np.float32(0.5 - size / 2)
    return Slopes(
        *(grid.ravel() / camera.focal_in_pixels(size) for grid in np.meshgrid(ticks, ticks))
    )


def rays(cameras: Sequence[PinholeCamera], slopes: Sequence[Slopes]) -> tuple[Vector, Vector]:
    """Origins and directions of cameras' rays, one camera's after the other's.

    A length along a direction is a depth.
    """
    origins, directions = [], []
    for camera, (x, y) in zip(cameras, slopes, strict=True):
        right, down, forward, eye = (Vector(*camera.camera_to_world[:3, i]) for i in range(4))
        origins.append(eye.map(lambda c, like=x: np.full(len(like), c)))
        directions.append(right * x + down * y + forward)
    return _joined(origins), _joined(directions)


def _joined(vectors: Sequence[Vector]) -> Vector:
    return Vector(*map(np.concatenate, zip(*vectors, strict=True)))


class _Shaded(NamedTuple):
    """What rays meet, in its light."""

    depth: Float[np.ndarray, " n"]  # at most FAR
    owner: Int[np.ndarray, " n"]  # the solid, -1 for ground and sky
    instance: Int[np.ndarray, " n"]  # 0 is ground or sky
    normal: Vector  # 0 of the sky
    color: Float[np.ndarray, "3 n"]  # linear
    direct: Float[np.ndarray, " n"]  # light of the sun; 0 in shadow


def _shaded(
    shots: Sequence[Shot], around: Sequence[Balls], slopes: Sequence[Slopes], sun: Vector
) -> _Shaded:
    """What each shot's rays of given slopes meet; `sun` holds for each ray the direction to it.

    All shots at once: of one alone, NumPy's calls would cost more than its arithmetic.
    """
    solids, numbers = join_solids([shot.solids for shot in shots])
    counts = [len(each.x) for each in slopes]
    spans = [slice(stop - n, stop) for n, stop in zip(counts, np.cumsum(counts), strict=True)]

    def pairs(found: Sequence[Sequence[Int[np.ndarray, " _"]]]) -> Pairs:
        tried = {
            number: span.start + ray
            for mine, span, each in zip(numbers, spans, found, strict=True)
            for number, ray in zip(mine.tolist(), each, strict=True)
        }
        return pairs_of([tried[number] for number in range(len(tried))])

    def spread(colors: Sequence[Float[np.ndarray, "3"]]) -> Vector:
        return Vector(*(np.repeat(c, counts) for c in srgb_to_linear(np.stack(colors)).T))

    origin, direction = rays([shot.camera for shot in shots], slopes)
    seen = [seen_rays(b, s.camera, each) for s, b, each in zip(shots, around, slopes, strict=True)]
    tried = pairs(seen)
    length, owner = first_entries(tried, entries(solids, tried, origin, direction), sum(counts))
    falls = direction.z < -1e-6
    ground = np.where(falls, -origin.z / np.where(falls, direction.z, -1), np.inf)
    owner = np.where(length < ground, owner, -1)
    lit, solid = falls | (owner >= 0), np.flatnonzero(owner >= 0)
    depth = np.minimum(np.minimum(length, ground), FAR)
    point = origin + direction * depth

    surface = surface_of(attributes(solids)[owner[solid]].T, point.map(lambda c: c[solid]))
    color, horizon, zenith = (
        spread([np.array(shot.light[i], np.float32) for shot in shots]) for i in range(3)
    )
    east, north = np.zeros((2, len(lit)), np.float32)
    normal = Vector(east, north, lit.astype(np.float32))
    for whole, part in zip((*normal, *color), (*surface.normal, *surface.color), strict=True):
        whole[solid] = part

    facing = normal.dot(sun)
    light, sunward = np.empty_like(facing), []
    for shot, hulls, mine, span in zip(shots, around, numbers, spans, strict=True):
        at, outer = (vector.map(lambda c, span=span: c[span]) for vector in (point, normal))
        toward = np.array(shot.light.sun, np.float32)
        sunward.append(sunward_rays(hulls, at, toward, facing[span] > 0))
        from_sky = ambient_light(shot.solids, at, outer, owner[span], mine)
        light[span] = np.float32(shot.light.ambient) * from_sky
    dark = (facing <= 0) | shadowed_rays(solids, pairs(sunward), point, sun, owner)
    sunlight = np.repeat([1 - np.float32(shot.light.ambient) for shot in shots], counts)
    direct = sunlight * np.where(dark, 0, facing)
    light += direct

    unit = direction * (-1 / np.sqrt(direction.dot(direction)))
    sky = horizon + (zenith - horizon) * np.clip(-unit.z / SKY_HEIGHT, 0, 1)
    color = color.map(lambda c, s: np.where(lit, c * light, s), sky)
    middle = (sun + unit).map(lambda c: c[solid])
    mirrored = np.maximum(surface.normal.dot(middle) / np.sqrt(middle.dot(middle)), 0)
    shine = SHINE * mirrored**SHARPNESS * surface.gloss * (direct[solid] > 0)
    for channel in color:
        channel[solid] += shine
    instance = np.append(solids.instance, 0)[owner]  # the last is that of owner -1
    return _Shaded(depth, owner, instance, normal, np.stack([*color]), direct)


def _uneven(shaded: _Shaded, size: int) -> Bool[np.ndarray, "v n"]:
    """The pixels of each shot near which color, solid or sunlight changes."""

    def change(images: np.ndarray, reach: int) -> np.ndarray:
        square = np.ones((2 * reach + 1,) * 2, np.uint8)
        images = images.astype(np.float32).reshape(-1, size, size)
        return np.stack([cv2.morphologyEx(p, cv2.MORPH_GRADIENT, square) for p in images])

    colors = change(np.sqrt(shaded.color), 1).reshape(3, -1, size, size)  # nearly sRGB
    # The edge of a shadow is as soft at any size of the image.
    shadows = change(shaded.direct == 0, -(-size // SOFTNESS))
    found = (colors > CONTRAST).any(axis=0) | (change(shaded.owner, 1) > 0) | (shadows > 0)
    return found.reshape(-1, size * size)


def render(shots: Sequence[Shot], size: int) -> list[Seen]:
    """The images (size x size) of shots, with what they show."""
    slopes = [central_slopes(shot.camera, size) for shot in shots]
    balls_of = {
        id(shot.solids): bounding_balls(shot.solids) for shot in shots
    }  # shots may share solids
    around = [balls_of[id(shot.solids)] for shot in shots]
    suns = [sun_directions(np.array(shot.light.sun, np.float32), len(OFFSETS)) for shot in shots]

    def spread(counts: Sequence[int], samples: slice) -> Vector:
        """Each ray of a pixel sees the sun from another point of its disc."""
        pixels = zip(suns, counts, strict=True)
        spreads = [sun.map(lambda c, n=n: np.repeat(c[samples], n)) for sun, n in pixels]
        return _joined(spreads)

    with np.errstate(all="ignore"):  # misses divide by zero and are left out afterwards
        first = _shaded(shots, around, slopes, spread([size**2] * len(shots), slice(1)))
        again = list(map(np.flatnonzero, _uneven(first, size)))
        near = []
        for shot, (x, y), pixels in zip(shots, slopes, again, strict=True):
            across, down = (OFFSETS[1:, :, None] / shot.camera.focal_in_pixels(size)).swapaxes(0, 1)
            near.append(Slopes((x[pixels] + across).ravel(), (y[pixels] + down).ravel()))
        others = _shaded(shots, around, near, spread(list(map(len, again)), slice(1, None)))

    found, end = [], 0
    for number, (shot, pixels) in enumerate(zip(shots, again, strict=True)):
        mine = slice(number * size**2, (number + 1) * size**2)
        start, end = end, end + (len(OFFSETS) - 1) * len(pixels)
        color, more = first.color[:, mine], others.color[:, start:end]
        total = color[:, pixels] + more.reshape(3, len(OFFSETS) - 1, -1).sum(axis=1)
        color[:, pixels] = total / len(OFFSETS)
        normal = first.normal.map(lambda c, mine=mine: c[mine])
        found.append(
            Seen(
                image=linear_to_srgb(color.T).reshape(size, size, 3),
                depth=first.depth[mine].reshape(size, size),
                normals=(np.stack([*normal], -1) @ shot.camera.camera_to_world[:3, :3]).reshape(
                    size, size, 3
                ),
                instances=first.instance[mine].reshape(size, size),
            )
        )
    return found
