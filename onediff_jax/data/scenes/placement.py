"""The full scenes: solids of five shapes, jointed figures, several cameras, groups of one identity.

A scene is a pure function of (seed, split, index).  Scenes 4g to 4g + 3 of a split are a group and
share an identity: in groups of even number a figure, in others a distinctive object.  As in the
basic scenes, what the first camera sees decides order and places, so that captions are true.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from onediff_jax.data.scenes import figure, parts
from onediff_jax.data.scenes import render as full_render
from onediff_jax.data.scenes.basic import (
    APART,
    COUNTS,
    PALETTE,
    PLACES,
    UNHIDDEN,
    VISIBLE,
    Camera,
    Triple,
    is_clear,
    placed_spots,
    stream,
)
from onediff_jax.data.scenes.culling import balls, seen_rays
from onediff_jax.data.scenes.objects import COLORS, MATERIALS, Person, Solid, draw_solid
from onediff_jax.data.scenes.primitives import Vector
from onediff_jax.data.scenes.render import Surroundings
from onediff_jax.data.scenes.solids import Solids, entries, nearest, pairs_of

GROUP = 4  # scenes that share an identity
GROUNDS: dict[str, Triple] = {
    "grey": (0.68, 0.68, 0.69),
    "sandy": (0.85, 0.76, 0.58),
    "pale green": (0.66, 0.80, 0.60),
    "pale blue": (0.66, 0.77, 0.88),
    "pale pink": (0.90, 0.74, 0.76),
    "white": (0.93, 0.93, 0.92),
}
SKIES: dict[str, tuple[Triple, Triple]] = {  # horizon and zenith
    "blue sky": ((0.87, 0.93, 0.98), (0.42, 0.63, 0.93)),
    "evening sky": ((1.00, 0.80, 0.58), (0.62, 0.52, 0.76)),
    "overcast sky": ((0.90, 0.91, 0.92), (0.70, 0.72, 0.75)),
    "violet sky": ((0.93, 0.87, 0.96), (0.66, 0.56, 0.88)),
}
PROBE = 24  # pixels across a view that is judged
GLANCE = 16  # and across one that only has to show everything
LEAST = 0.004  # share of another camera's image that every thing covers
INSIDE = 15  # least number of a figure's keypoints in the image
ATTEMPTS = 400


class Light(NamedTuple):
    """Ground, sky and sun by name, and the sun's direction."""

    ground: str
    sky: str
    sun: Triple  # unit vector towards it
    ambient: float  # share of ambient light

    def arrays(self) -> Surroundings:
        """As the ray tracer takes them."""
        colors = (GROUNDS[self.ground], *SKIES[self.sky], self.sun)
        return Surroundings(
            *(np.array(c, np.float32) for c in colors), np.asarray(self.ambient, np.float32)
        )


@dataclasses.dataclass(frozen=True)
class FullScene:
    """All there is to know of a scene's images; things from left to right in the first."""

    things: tuple[Solid | Person, ...]
    cameras: tuple[Camera, ...]
    light: Light
    kind: str  # of the group: figures or objects

    def solids(self) -> Solids:
        """The things as the ray tracer takes them; instance i is things[i - 1]."""
        return _solids_of(self.things)


@functools.lru_cache(16)  # those of a scene are asked for by every judge of its views
def _solids_of(things: tuple[Solid | Person, ...]) -> Solids:
    return parts.packed([thing.parts() for thing in things])


class View(NamedTuple):
    """What a judge sees of a scene at every pixel; -1 is ground or sky."""

    owner: Int[np.ndarray, "n"]  # the thing
    place: Int[np.ndarray, "n"]  # the solid's place among `Solids`
    outlines: Bool[np.ndarray, "k n"]


def kind_of(index: int) -> str:
    """What the group of a scene shares."""
    return ("figures", "objects")[index // GROUP % 2]


@functools.lru_cache(16)  # what is judged is asked for again
def view(scene: FullScene, camera: Camera, pixels: int) -> View:
    """What a camera sees at pixels x pixels points."""
    return views_of(scene, [camera], pixels)[0]


def views_of(scene: FullScene, cameras: Sequence[Camera], pixels: int) -> list[View]:
    """What each of several cameras sees at pixels x pixels points."""
    solids, arrays = scene.solids(), [camera.arrays() for camera in cameras]
    slopes = [full_render.central_slopes(each, pixels) for each in arrays]
    origin, direction = full_render.rays(arrays, slopes)
    around = balls(solids)
    seen = [seen_rays(around, *each) for each in zip(arrays, slopes, strict=True)]
    tried = [
        np.concatenate([i * pixels**2 + ray for i, ray in enumerate(of_solid)])
        for of_solid in zip(*seen, strict=True)
    ]
    pairs, count = pairs_of(tried), len(cameras) * pixels**2
    with np.errstate(all="ignore"):
        entry = entries(solids, pairs, origin, direction)
    _, place = nearest(pairs, entry, count)
    of, met = solids.instance - 1, np.isfinite(entry)
    outlines = np.zeros((len(scene.things), count), bool)
    outlines[of[pairs.solid[met]], pairs.ray[met]] = True
    owner, parts = np.where(place < 0, -1, of[place]), len(cameras)
    return list(
        map(View, np.split(owner, parts), np.split(place, parts), np.split(outlines, parts, axis=1))
    )


def projected(
    camera: Camera, points: Float[np.ndarray, "n 3"]
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n"]]:
    """Where points of the world are in an image, from 0 to 1, and how far ahead of the camera."""
    local = (points - np.array(camera.eye)) @ np.array(camera.axes()).T
    return local[:, :2] / local[:, 2:] * camera.focal + 0.5, local[:, 2]


def column(mask: Bool[np.ndarray, "n"]) -> float:
    """Mean column of a square mask, from 0 to 1."""
    size = math.isqrt(len(mask))
    return float((np.flatnonzero(mask) % size + 0.5).mean() / size)


def judged(scene: FullScene, ordered: bool = True) -> FullScene | None:
    """The scene, its places named and things in order; None where one cannot be seen or named well.

    Without `ordered` things keep their order and need not be apart from left to right.
    """
    seen = view(scene, scene.cameras[0], PROBE)
    found = []
    for i, thing in enumerate(scene.things):
        mine = seen.owner == i
        visible = np.count_nonzero(mine)
        if not VISIBLE[0] <= visible / PROBE**2 <= VISIBLE[1]:
            return None
        if visible < UNHIDDEN * np.count_nonzero(seen.outlines[i]):
            return None
        middle = column(mine)
        if not is_clear(middle):
            return None
        if isinstance(thing, Person):
            xy, _ = projected(scene.cameras[0], thing.keypoints())
            if (np.abs(xy - 0.5) < 0.49).all(axis=1).sum() < INSIDE:
                return None
        found.append((middle, dataclasses.replace(thing, place=PLACES[int(3 * middle)])))
    if ordered:
        found.sort(key=lambda pair: pair[0])
        if any(b[0] - a[0] < APART for a, b in itertools.pairwise(found)):
            return None
    return dataclasses.replace(scene, things=tuple(thing for _, thing in found))


def shared_thing(seed: int, split: str, index: int) -> Solid | Person:
    """What the group of a scene shares, at the origin; of a figure only the pose is the scene's."""
    group, member = divmod(index, GROUP)
    rng = stream("full", seed, split, "group", group)
    if kind_of(index) == "figures":
        who = figure.draw_identity(rng, list(COLORS))
        pose = figure.POSES[rng.permutation(len(figure.POSES))[member]]
        posing = stream("full", seed, split, "pose", index)
        return Person(who, figure.draw_pose(posing, pose), "", (0.0, 0.0), 0.0)
    color = list(PALETTE)[rng.integers(len(PALETTE))]
    others = [name for name in COLORS if name not in (color, "brown")]
    material = ("striped", "checkered", "glossy")[rng.choice(3, p=(0.4, 0.4, 0.2))]
    return draw_solid(rng, color, others, material)


def _with_others(rng: np.random.Generator, shared: Solid | Person) -> list[Solid | Person]:
    """What a group shares, and up to two more objects of other colors."""
    if isinstance(shared, Person):
        taken = {shared.who.shirt, shared.who.trousers, shared.who.hat_color}
    else:
        taken = {shared.color, shared.second}
    free, things = [name for name in PALETTE if name not in taken], [shared]
    for i in rng.permutation(len(free))[: rng.choice(3, p=COUNTS)]:
        material = list(MATERIALS)[rng.choice(len(MATERIALS), p=list(MATERIALS.values()))]
        things.append(draw_solid(rng, free[i], ["white", "black"], material))
    return things


def _first_camera(rng: np.random.Generator, count: int) -> Camera:
    distance = rng.uniform(4.3, 5.4) + 0.5 * (count - 1)
    target = (rng.uniform(-0.4, 0.4), rng.uniform(-0.4, 0.4), rng.uniform(0.6, 1.1))
    azimuth, elevation = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(6, 32))
    return _orbiting(target, distance, azimuth, elevation, rng.uniform(42, 50))


def _orbiting(
    target: Triple, distance: float, azimuth: float, elevation: float, field_of_view: float
) -> Camera:
    level = math.cos(elevation)
    toward = (level * math.cos(azimuth), level * math.sin(azimuth), math.sin(elevation))
    eye = tuple(t + distance * c for t, c in zip(target, toward, strict=True))
    return Camera(eye, target, field_of_view)


def _more_cameras(rng: np.random.Generator, scene: FullScene, count: int) -> list[Camera] | None:
    """Cameras that see every thing: of half the scenes on an orbit about the things, else free."""
    first, things = scene.cameras[0], scene.things
    center = tuple(np.mean([thing.center for thing in things], axis=0).tolist())
    orbit, found = rng.random() < 0.5, []
    distance = max(math.dist(first.eye, center), 4.5)
    start = math.atan2(first.eye[1] - center[1], first.eye[0] - center[0])

    def draw() -> Camera:
        azimuth = start + rng.choice((-1, 1)) * rng.uniform(0.3, 2.6)
        if orbit:
            elevation = math.radians(rng.uniform(10, 40))
            return _orbiting(center, distance, azimuth, elevation, first.field_of_view)
        target = tuple(c + rng.uniform(-0.5, 0.5) for c in center)
        elevation, zoom = math.radians(rng.uniform(5, 45)), rng.uniform(0.9, 1.3)
        return _orbiting(target, zoom * distance, azimuth, elevation, rng.uniform(42, 52))

    for _ in range(30):
        if len(found) == count:
            return found
        found += _showing_all(scene, [draw() for _ in range(count - len(found))])
    return None


def _showing_all(scene: FullScene, cameras: Sequence[Camera]) -> list[Camera]:
    """Those cameras that see the middle of every thing, and none hidden behind another."""
    middles = np.array([thing.center for thing in scene.things])

    def faces(camera: Camera) -> bool:
        xy, ahead = projected(camera, middles)
        return bool((ahead >= 1.5).all() and (np.abs(xy - 0.5) <= 0.42).all())

    facing = [camera for camera in cameras if faces(camera)]
    shares = [
        [(seen.owner == i).mean() for i in range(len(scene.things))]
        for seen in (views_of(scene, facing, GLANCE) if facing else [])
    ]
    return [c for c, each in zip(facing, shares, strict=True) if min(each) > 2 * LEAST]


def draw_full_scene(seed: int, split: str, index: int, views: int) -> FullScene:
    """Scene `index` of a split, with that many cameras; a pure function of its arguments."""
    rng = stream("full", seed, split, index)
    things, kind = _with_others(rng, shared_thing(seed, split, index)), kind_of(index)
    group, member = divmod(index, GROUP)
    shared = stream("full", seed, split, "light", group)
    ground = list(GROUNDS)[shared.permutation(len(GROUNDS))[member]]
    sky = list(SKIES)[shared.permutation(len(SKIES))[member]]
    ambient, height = rng.uniform(0.42, 0.52), math.radians(rng.uniform(30, 60))
    side = rng.choice((-1, 1)) * rng.uniform(0.4, 1.7)
    facing = rng.choice((0.0, math.pi), p=(0.85, 0.15)) + rng.uniform(-1.3, 1.3)

    # Only the cameras and positions are drawn again, so that all else keeps its shares.
    for _ in range(ATTEMPTS):
        camera = _first_camera(rng, len(things))
        spots = placed_spots(rng, [thing.extent for thing in things], camera)
        if spots is None:
            continue
        # The sun stands behind the camera or beside it, so that we see lit sides.
        _, _, (x, y, _) = camera.axes()
        back = math.atan2(-y, -x)
        sun = _orbiting((0.0, 0.0, 0.0), 1.0, back + side, height, 45.0).eye
        placed = [thing.at(*spot) for thing, spot in zip(things, spots, strict=True)]
        if kind == "figures":
            placed[0] = dataclasses.replace(placed[0], yaw=back + facing)
        light = Light(ground, sky, sun, ambient)
        scene = judged(FullScene(tuple(placed), (camera,), light, kind))
        cameras = scene and _more_cameras(rng, scene, views - 1)
        if cameras is not None:
            return dataclasses.replace(scene, cameras=(camera, *cameras))
    raise RuntimeError(
        f"Scene {index} of {split!r}, seed {seed}: no view of {things} after {ATTEMPTS} attempts."
    )


def seen_keypoints(scene: FullScene) -> Float[np.ndarray, "people 17 3"]:
    """Every figure's keypoints in the first camera's image: x and y from 0 to 1, visibility.

    Visibility as in COCO: 2 is visible, 1 is hidden by something, 0 is outside of the image (x
    and y are 0 then).
    """
    camera, solids = scene.cameras[0], scene.solids()
    eye = np.array(camera.eye)
    found = []
    for thing in scene.things:
        if not isinstance(thing, Person):
            continue
        away = thing.keypoints() - eye
        xy, ahead = projected(camera, thing.keypoints())
        inside = (ahead > 0) & (xy >= 0).all(axis=1) & (xy < 1).all(axis=1)
        with np.errstate(all="ignore"):
            pairs = pairs_of([np.arange(len(away))] * len(solids.instance))
            entry = entries(solids, pairs, Vector(*eye), Vector(*away.T))
        first, _ = nearest(pairs, entry, len(away))
        # Joints lie within limbs: what is hit within their own limb does not hide them.
        hidden = (1 - first) * np.linalg.norm(away, axis=1) > figure.reaches(thing.who)
        found.append(np.c_[xy, np.where(hidden, 1, 2)] * inside[:, None])
    return np.array(found, np.float32).reshape(-1, 17, 3)
