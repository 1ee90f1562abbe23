"""Scenes: where objects stand and what cameras see of them.

A scene is a pure function of (world, seed, split, index).  Its objects are moved until each can be
seen well, and named by where the first camera sees them, so that captions are true.  In a world of
groups, scenes share an identity: in groups of even number a figure, in others a distinctive object.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from onediff_jax.data.scenes import figure, render
from onediff_jax.data.scenes.culling import bounding_balls, seen_rays
from onediff_jax.data.scenes.geometry import PinholeCamera, Triple, Vector, orbiting_camera
from onediff_jax.data.scenes.objects import (
    NAMED_COLORS,
    PALETTE,
    Person,
    SceneObject,
    draw_solid,
)
from onediff_jax.data.scenes.primitives import solids_of
from onediff_jax.data.scenes.solids import Solids, entries, first_entries, pairs_of
from onediff_jax.data.scenes.worlds import World, random_stream

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
PLACES: tuple[str, ...] = ("left", "middle", "right")
COUNTS = (0.3, 0.4, 0.3)  # shares of scenes with one, two and three objects
DEEP = (0.7, 1.5, 1.9)  # how far from the camera's target objects may be, in depth, likewise
PROBE = 24  # pixels across a view that is judged
VISIBLE = (0.025, 0.5)  # least and most share of the image that an object covers
UNHIDDEN = 0.55  # least share of an object's outline that no other object hides
CLEAR = 0.045  # least distance of an object from a border between places, in image widths
APART = 0.08  # least distance of two objects from left to right; their order would be moot
GLANCE = 16  # pixels across a view that only has to show everything
LEAST = 0.004  # share of another camera's image that every object covers
INSIDE = 15  # least number of a figure's keypoints in the image
ATTEMPTS = 5000


@dataclasses.dataclass(frozen=True)
class Scene:
    """All there is to know of a scene's images; objects from left to right in the first."""

    world: World
    objects: tuple[SceneObject, ...]
    cameras: tuple[PinholeCamera, ...]
    light: render.Light
    ground: str  # its name; empty where it has none
    sky: str  # likewise

    def solids(self) -> Solids:
        """The objects as the ray tracer takes them; instance i is objects[i - 1]."""
        return _tables(self.objects)


@functools.lru_cache(16)  # those of a scene are asked for by every judge of its views
def _tables(objects: tuple[SceneObject, ...]) -> Solids:
    return solids_of([item.primitives() for item in objects])


class Sight(NamedTuple):
    """What a judge sees of a scene at every pixel; -1 is ground or sky."""

    owner: Int[np.ndarray, "n"]  # the object
    solid: Int[np.ndarray, "n"]  # the solid's place among `Solids`
    outlines: Bool[np.ndarray, "k n"]


@functools.lru_cache(16)  # what is judged is asked for again
def sight(scene: Scene, camera: PinholeCamera, pixels: int) -> Sight:
    """What a camera sees at pixels x pixels points."""
    return sights(scene, [camera], pixels)[0]


def sights(scene: Scene, cameras: Sequence[PinholeCamera], pixels: int) -> list[Sight]:
    """What each of several cameras sees at pixels x pixels points."""
    solids = scene.solids()
    slopes = [render.central_slopes(camera, pixels) for camera in cameras]
    origin, direction = render.rays(cameras, slopes)
    around = bounding_balls(solids)
    seen = [seen_rays(around, *each) for each in zip(cameras, slopes, strict=True)]
    tried = [
        np.concatenate([i * pixels**2 + ray for i, ray in enumerate(of_solid)])
        for of_solid in zip(*seen, strict=True)
    ]
    pairs, count = pairs_of(tried), len(cameras) * pixels**2
    with np.errstate(all="ignore"):
        entry = entries(solids, pairs, origin, direction)
    _, solid = first_entries(pairs, entry, count)
    of, met = solids.instance - 1, np.isfinite(entry)
    outlines = np.zeros((len(scene.objects), count), bool)
    outlines[of[pairs.solid[met]], pairs.ray[met]] = True
    owner = np.where(solid < 0, -1, of[solid])
    each = (np.split(array, len(cameras), axis=-1) for array in (owner, solid, outlines))
    return list(map(Sight, *each))


def column(mask: Bool[np.ndarray, "n"]) -> float:
    """Mean column of a square mask, from 0 to 1."""
    size = math.isqrt(len(mask))
    return float((np.flatnonzero(mask) % size + 0.5).mean() / size)


def is_clear(middle: float) -> bool:
    """Whether an object in the middle of that column (0 to 1) has one place beyond dispute."""
    return min(abs(middle - 1 / 3), abs(middle - 2 / 3)) > CLEAR


def judge(scene: Scene, ordered: bool = True) -> Scene | None:
    """The scene, places named, objects in order; None where one cannot be seen or named well.

    Without `ordered` objects keep their order and need not be apart from left to right.
    """
    seen = sight(scene, scene.cameras[0], PROBE)
    found = []
    for i, item in enumerate(scene.objects):
        mine = seen.owner == i
        visible = np.count_nonzero(mine)
        if not VISIBLE[0] <= visible / PROBE**2 <= VISIBLE[1]:
            return None
        if visible < UNHIDDEN * np.count_nonzero(seen.outlines[i]):
            return None
        middle = column(mine)
        if not is_clear(middle):
            return None
        if isinstance(item, Person):
            xy, _ = scene.cameras[0].project(item.keypoints())
            if (np.abs(xy - 0.5) < 0.49).all(axis=1).sum() < INSIDE:
                return None
        found.append((middle, dataclasses.replace(item, place=PLACES[int(3 * middle)])))
    if ordered:
        found.sort(key=lambda pair: pair[0])
        if any(b[0] - a[0] < APART for a, b in itertools.pairwise(found)):
            return None
    return dataclasses.replace(scene, objects=tuple(item for _, item in found))


def free_spots(
    rng: np.random.Generator, extents: list[tuple[float, float]], camera: PinholeCamera
) -> list[tuple[float, float]] | None:
    """Spots on the ground for objects, apart from each other and spread over the image.

    Of every object the radius of the ground that it takes up and half its height are given.  The
    image cuts off about a tenth of it at most.  None where that did not work.
    """
    _, _, (x, y, z) = camera.axes()
    level = math.hypot(x, y)
    ahead = math.dist(camera.eye[:2], camera.target[:2])
    count = len(extents)
    spots: list[tuple[tuple[float, float], float]] = []
    thirds = rng.permutation(len(PLACES))[:count].tolist()
    for third, (foot, tall) in zip(thirds, extents, strict=True):
        rise = tall - camera.eye[2]
        for along, aside in rng.random((6, 2)).tolist():
            # Along the ground from under the camera, and aside from the image's middle.
            along = ahead + DEEP[count - 1] * (2 * along - 1)
            depth, height = level * along + z * rise, z * along - level * rise
            edge = 0.5 * depth / camera.focal
            if depth < 1.5 or abs(height) + 0.8 * tall > edge:
                continue
            # Thirds overlap a little: now and then two objects share a place.
            column = (third + 1.5 * aside - 0.25) / len(PLACES)
            aside = (2 * column - 1) * edge
            if abs(aside) + 0.8 * foot > edge or not is_clear(column):
                continue
            spot = (
                camera.eye[0] + (x * along + y * aside) / level,
                camera.eye[1] + (y * along - x * aside) / level,
            )
            if all(math.dist(spot, other) > foot + radius + 0.06 for other, radius in spots):
                spots.append((spot, foot))
                break
        else:
            return None
    return [spot for spot, _ in spots]


def shared_object(world: World, seed: int, split: str, index: int) -> SceneObject:
    """What the group of a scene shares, at the origin; of a figure only the pose is the scene's."""
    group, member = divmod(index, world.group)
    rng = random_stream(world.name, seed, split, "group", group)
    if world.kind(index) == "figures":
        who = figure.draw_identity(rng, list(NAMED_COLORS))
        pose = figure.POSES[rng.permutation(len(figure.POSES))[member]]
        posing = random_stream(world.name, seed, split, "pose", index)
        return Person(who, figure.draw_pose(posing, pose), "", (0.0, 0.0), 0.0)
    color = list(PALETTE)[rng.integers(len(PALETTE))]
    others = [name for name in NAMED_COLORS if name not in (color, "brown")]
    material = _draw_name(rng, world.shared_materials)
    return draw_solid(rng, world.shapes, color, others, material)


def _draw_name(rng: np.random.Generator, shares: Mapping[str, float]) -> str:
    return list(shares)[rng.choice(len(shares), p=list(shares.values()))]


def _with_others(rng: np.random.Generator, world: World, shared: SceneObject) -> list[SceneObject]:
    """What a group shares, and up to two more objects of other colors."""
    if isinstance(shared, Person):
        taken = {shared.who.shirt, shared.who.trousers, shared.who.hat_color}
    else:
        taken = {shared.color, shared.second}
    free, objects = [name for name in PALETTE if name not in taken], [shared]
    for i in rng.permutation(len(free))[: rng.choice(3, p=COUNTS)]:
        material = _draw_name(rng, world.materials)
        objects.append(draw_solid(rng, world.shapes, free[i], ["white", "black"], material))
    return objects


def _first_camera(rng: np.random.Generator, world: World, count: int) -> PinholeCamera:
    ranges = world.camera
    distance = rng.uniform(*ranges.distance) + ranges.farther * (count - 1)
    x, y = (rng.uniform(-ranges.aside, ranges.aside) for _ in range(2))
    target = (x, y, rng.uniform(*ranges.height))
    azimuth, elevation = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(*ranges.elevation))
    return orbiting_camera(target, distance, azimuth, elevation, rng.uniform(*ranges.field_of_view))


def _more_cameras(rng: np.random.Generator, scene: Scene, count: int) -> list[PinholeCamera] | None:
    """Cameras that see every object: in half of the scenes on one orbit about them, else free."""
    first, objects = scene.cameras[0], scene.objects
    center = tuple(np.mean([item.center for item in objects], axis=0).tolist())
    orbit = rng.random() < 0.5
    found: list[PinholeCamera] = []
    distance = max(math.dist(first.eye, center), 4.5)
    start = math.atan2(first.eye[1] - center[1], first.eye[0] - center[0])

    def draw() -> PinholeCamera:
        azimuth = start + rng.choice((-1, 1)) * rng.uniform(0.3, 2.6)
        if orbit:
            elevation = math.radians(rng.uniform(10, 40))
            return orbiting_camera(center, distance, azimuth, elevation, first.field_of_view)
        target = tuple(c + rng.uniform(-0.5, 0.5) for c in center)
        elevation, zoom = math.radians(rng.uniform(5, 45)), rng.uniform(0.9, 1.3)
        return orbiting_camera(target, zoom * distance, azimuth, elevation, rng.uniform(42, 52))

    for _ in range(30):
        if len(found) == count:
            return found
        found += _cameras_showing_all(scene, [draw() for _ in range(count - len(found))])
    return None


def _cameras_showing_all(scene: Scene, cameras: Sequence[PinholeCamera]) -> list[PinholeCamera]:
    """Those cameras that see the middle of every object, and none hidden behind another."""
    middles = np.array([item.center for item in scene.objects])

    def faces(camera: PinholeCamera) -> bool:
        xy, ahead = camera.project(middles)
        return bool((ahead >= 1.5).all() and (np.abs(xy - 0.5) <= 0.42).all())

    facing = [camera for camera in cameras if faces(camera)]
    shares = [
        [(seen.owner == i).mean() for i in range(len(scene.objects))]
        for seen in (sights(scene, facing, GLANCE) if facing else [])
    ]
    return [c for c, each in zip(facing, shares, strict=True) if min(each) > 2 * LEAST]


def _pale_color(rng: np.random.Generator, most: float, low: float, high: float) -> Triple:
    """Any hue, of saturation up to `most` and brightness in [low, high]."""
    hue, pale, value = rng.uniform(0, 6), rng.uniform(0.15, 1) * most, rng.uniform(low, high)
    ramp = (min(max(abs((hue + turn) % 6 - 3) - 1, 0), 1) for turn in (0, 4, 2))
    red, green, blue = (value * (1 - pale * (1 - c)) for c in ramp)
    return red, green, blue


def draw_scene(world: World, seed: int, split: str, index: int, views: int) -> Scene:
    """Scene `index` of a split, with that many cameras; a pure function of its arguments."""
    rng = random_stream(world.name, seed, split, index)
    objects = _with_others(rng, world, shared_object(world, seed, split, index))
    if world.named_light:
        group, member = divmod(index, world.group)
        shared = random_stream(world.name, seed, split, "light", group)
        ground = list(GROUNDS)[shared.permutation(len(GROUNDS))[member]]
        sky = list(SKIES)[shared.permutation(len(SKIES))[member]]
        colors = [GROUNDS[ground], *SKIES[sky]]
    else:
        ground = sky = ""
        ranges = ((0.2, 0.65, 0.92), (0.1, 0.92, 1.0), (0.4, 0.7, 0.95))
        colors = [_pale_color(rng, *each) for each in ranges]
    ambient, height = rng.uniform(0.42, 0.52), math.radians(rng.uniform(30, 60))
    side = rng.choice((-1, 1)) * rng.uniform(0.4, 1.7)
    facing = rng.choice((0.0, math.pi), p=(0.85, 0.15)) + rng.uniform(-1.3, 1.3)

    # Only the cameras and positions are drawn again, so that all else keeps its shares.
    for _ in range(ATTEMPTS):
        camera = _first_camera(rng, world, len(objects))
        spots = free_spots(rng, [item.extent for item in objects], camera)
        if spots is None:
            continue
        # The sun stands behind the camera or beside it, so that we see lit sides.
        _, _, (x, y, _) = camera.axes()
        back = math.atan2(-y, -x)
        sun = orbiting_camera((0.0, 0.0, 0.0), 1.0, back + side, height, 45.0).eye
        standing = [item.at(*spot) for item, spot in zip(objects, spots, strict=True)]
        if isinstance(standing[0], Person):
            standing[0] = dataclasses.replace(standing[0], yaw=back + facing)
        land, horizon, zenith = colors
        light = render.Light(land, horizon, zenith, sun, ambient)
        scene = judge(Scene(world, tuple(standing), (camera,), light, ground, sky))
        if scene is None:
            continue
        cameras = _more_cameras(rng, scene, views - 1)
        if cameras is not None:
            return dataclasses.replace(scene, cameras=(camera, *cameras))
    raise RuntimeError(
        f"Scene {index} of {split!r}, seed {seed}: no view of {objects} after {ATTEMPTS} attempts."
    )


def seen_keypoints(scene: Scene) -> Float[np.ndarray, "people 17 3"]:
    """Every figure's keypoints in the first camera's image: x and y from 0 to 1, visibility.

    Visibility as in COCO: 2 is visible, 1 is hidden by something, 0 is outside of the image (x
    and y are 0 then).
    """
    camera, solids = scene.cameras[0], scene.solids()
    eye = np.array(camera.eye)
    found = []
    for item in scene.objects:
        if not isinstance(item, Person):
            continue
        away = item.keypoints() - eye
        xy, ahead = camera.project(item.keypoints())
        inside = (ahead > 0) & (xy >= 0).all(axis=1) & (xy < 1).all(axis=1)
        with np.errstate(all="ignore"):
            pairs = pairs_of([np.arange(len(away))] * len(solids.instance))
            entry = entries(solids, pairs, Vector(*eye), Vector(*away.T))
        first, _ = first_entries(pairs, entry, len(away))
        # Joints lie within limbs: what is hit within their own limb does not hide them.
        hidden = (1 - first) * np.linalg.norm(away, axis=1) > figure.reaches(item.who)
        found.append(np.c_[xy, np.where(hidden, 1, 2)] * inside[:, None])
    return np.array(found, np.float32).reshape(-1, 17, 3)
