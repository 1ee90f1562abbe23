"""Procedural scenes: a few large objects on a plain ground, and captions that are true of them.

A scene is a pure function of (seed, split, index).  Its objects are moved until each can be seen
well, and named by where they are seen; the ray tracer that will draw the image decides both, so
that captions and images cannot disagree.
"""

import dataclasses
import itertools
import math
import zlib

import numpy as np
from jaxtyping import Bool, Int

from onediff_jax.data.scenes import basic_render as render

Triple = tuple[float, float, float]

PALETTE: dict[str, Triple] = {  # sRGB; hues are at least 20 degrees apart
    "red": (0.88, 0.10, 0.12),
    "orange": (1.00, 0.50, 0.05),
    "yellow": (0.98, 0.86, 0.10),
    "green": (0.16, 0.70, 0.22),
    "cyan": (0.12, 0.80, 0.84),
    "blue": (0.12, 0.28, 0.90),
    "purple": (0.52, 0.18, 0.80),
    "pink": (0.98, 0.45, 0.74),
}
SHAPES: tuple[str, ...] = tuple(render.PRIMITIVES)
SIZES: dict[str, float] = {"small": 0.58, "large": 1.08}  # a sphere's radius, in world units
PLACES: tuple[str, ...] = ("left", "middle", "right")
WORDS: dict[str, tuple[str, str]] = {  # what captions call things, usually and sometimes
    "sphere": ("sphere", "ball"),
    "box": ("box", "block"),
    "left": ("on the left", "on the left side"),
    "middle": ("in the middle", "in the center"),
    "right": ("on the right", "on the right side"),
}

COUNTS = (0.3, 0.4, 0.3)  # shares of scenes with one, two and three objects
LARGE = 0.65  # share of large objects
DISTANCES = ((3.9, 5.2), (4.3, 6.0), (4.8, 6.6))  # of the camera, for one, two and three objects
DEEP = (0.7, 1.5, 1.9)  # how far from the camera's target objects may be, in depth, likewise
PROBE = 24  # pixels across the view on which a scene is judged
VISIBLE = (0.025, 0.5)  # least and most share of the image that an object covers
UNHIDDEN = 0.55  # least share of an object's outline that no other object hides
CLEAR = 0.045  # least distance of an object from a border between places, in image widths
APART = 0.08  # least distance of two objects from left to right; their order would be moot
ATTEMPTS = 5000


@dataclasses.dataclass(frozen=True)
class Object:
    """A solid that stands on the ground; lengths in world units, yaw in radians about z."""

    shape: str
    color: str
    size: str
    place: str  # the third of the image that holds the centroid of its visible pixels
    center: Triple
    half: Triple  # half extents
    yaw: float


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera held level, in world coordinates; its field of view in degrees."""

    eye: Triple
    target: Triple
    field_of_view: float

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

    def arrays(self) -> render.CameraArrays:
        """The camera as the ray tracer takes it."""
        camera_to_world = np.eye(4, dtype=np.float32)
        camera_to_world[:3] = np.array((*self.axes(), self.eye)).T
        return render.CameraArrays(np.asarray(self.focal, np.float32), camera_to_world)


@dataclasses.dataclass(frozen=True)
class Scene:
    """All there is to know of an image; objects from left to right, colors sRGB in [0, 1]."""

    objects: tuple[Object, ...]
    camera: Camera
    ground: Triple
    horizon: Triple
    zenith: Triple
    sun: Triple  # unit vector towards it
    ambient: float  # share of ambient light

    def arrays(self) -> render.SceneArrays:
        """The scene as the ray tracer takes it; instance i of the image is objects[i - 1]."""

        def column(values: list, blank: object, dtype: type) -> np.ndarray:
            return np.array(values + [blank] * (render.MAX_OBJECTS - len(values)), dtype)

        def triple(name: str) -> np.ndarray:
            return np.array(getattr(self, name), np.float32)

        objects = self.objects
        return render.SceneArrays(
            kind=column([SHAPES.index(o.shape) for o in objects], 0, np.int32),
            active=column([True for _ in objects], False, np.bool_),
            center=column([o.center for o in objects], (0, 0, 0), np.float32),
            half=column([o.half for o in objects], (1, 1, 1), np.float32),
            yaw=column([o.yaw for o in objects], 0, np.float32),
            albedo=column([PALETTE[o.color] for o in objects], (0, 0, 0), np.float32),
            ground=triple("ground"),
            horizon=triple("horizon"),
            zenith=triple("zenith"),
            sun=triple("sun"),
            ambient=np.asarray(self.ambient, np.float32),
            camera=self.camera.arrays(),
        )


def stream(*key: int | str) -> np.random.Generator:
    """Random numbers of its own for every key."""
    numbers = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(numbers)))


def _soft_color(rng: np.random.Generator, most: float, low: float, high: float) -> Triple:
    """A pale color of any hue, of saturation up to `most` and brightness in [low, high]."""
    hue, pale, value = rng.uniform(0, 6), rng.uniform(0.15, 1) * most, rng.uniform(low, high)
    ramp = (min(max(abs((hue + turn) % 6 - 3) - 1, 0), 1) for turn in (0, 4, 2))
    return tuple(value * (1 - pale * (1 - c)) for c in ramp)


def _new_object(rng: np.random.Generator, color: str) -> Object:
    """An object that stands at the origin, its place unknown."""
    shape = SHAPES[rng.integers(len(SHAPES))]
    size = "large" if rng.random() < LARGE else "small"
    radius = SIZES[size] * rng.uniform(0.94, 1.06)
    half = (radius, radius, radius)
    if shape == "box":  # a cube as wide as a sphere would look larger than it
        half = tuple(radius * rng.uniform(*r) for r in ((0.65, 0.9), (0.65, 0.9), (0.7, 1.1)))
    return Object(shape, color, size, "", (0.0, 0.0, half[2]), half, rng.uniform(0, math.pi))


def _new_camera(rng: np.random.Generator, count: int) -> Camera:
    distance, azimuth = rng.uniform(*DISTANCES[count - 1]), rng.uniform(0, 2 * math.pi)
    elevation = math.radians(rng.uniform(15, 45))
    target = (rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5), rng.uniform(0.2, 1.1))
    toward = (
        math.cos(elevation) * math.cos(azimuth),
        math.cos(elevation) * math.sin(azimuth),
        math.sin(elevation),
    )
    eye = tuple(t + distance * c for t, c in zip(target, toward, strict=True))
    return Camera(eye, target, rng.uniform(40, 50))


def _foot(item: Object) -> float:
    """Radius of the ground that an object takes up, whichever way it is turned."""
    return item.half[0] if item.shape == "sphere" else math.hypot(*item.half[:2])


def is_clear(middle: float) -> bool:
    """Whether an object in the middle of that column (0 to 1) has one place beyond dispute."""
    return min(abs(middle - 1 / 3), abs(middle - 2 / 3)) > CLEAR


def placed_spots(
    rng: np.random.Generator, extents: list[tuple[float, float]], camera: Camera
) -> list[tuple[float, float]] | None:
    """Spots on the ground for things, apart from each other and spread over the image.

    Of every thing the radius of the ground that it takes up and half its height are given.  A
    image cuts off about a tenth of it at most.  None where that did not work.
    """
    _, _, (x, y, z) = camera.axes()
    level = math.hypot(x, y)
    ahead = math.dist(camera.eye[:2], camera.target[:2])
    count, spots = len(extents), []
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


def _probe(scene: Scene) -> tuple[Int[np.ndarray, "n"], Bool[np.ndarray, "k n"]]:
    """The object seen at each of PROBE² pixels (-1: none), and every object's outline."""
    arrays = scene.arrays()
    origin, direction = render.camera_rays(arrays.camera, PROBE)
    length = render.distances(arrays, origin, direction)[:, 0]
    outlines = np.isfinite(length)
    return np.where(outlines.any(axis=0), length.argmin(axis=0), -1), outlines


def _judged(scene: Scene) -> Scene | None:
    """The scene, objects in order and places named; None where one cannot be seen or named well."""
    owner, outlines = _probe(scene)
    columns = (np.arange(PROBE**2) % PROBE + 0.5) / PROBE
    seen = []
    for i, item in enumerate(scene.objects):
        mine = owner == i
        visible, whole = np.count_nonzero(mine), np.count_nonzero(outlines[i])
        if not VISIBLE[0] <= visible / PROBE**2 <= VISIBLE[1] or visible < UNHIDDEN * whole:
            return None
        middle = float(columns[mine].mean())
        if not is_clear(middle):
            return None
        seen.append((middle, dataclasses.replace(item, place=PLACES[int(3 * middle)])))
    seen.sort(key=lambda pair: pair[0])
    if any(b[0] - a[0] < APART for a, b in itertools.pairwise(seen)):
        return None
    return dataclasses.replace(scene, objects=tuple(item for _, item in seen))


def draw_scene(seed: int, split: str, index: int) -> Scene:
    """Scene `index` of a split; a pure function of its arguments."""
    rng = stream(seed, split, index)
    count = 1 + int(np.searchsorted(np.cumsum(COUNTS), rng.random()))
    colors = list(PALETTE)
    objects = [_new_object(rng, colors[i]) for i in rng.permutation(len(colors))[:count]]
    ground = _soft_color(rng, 0.2, 0.65, 0.92)
    horizon, zenith = _soft_color(rng, 0.1, 0.92, 1.0), _soft_color(rng, 0.4, 0.7, 0.95)
    ambient = rng.uniform(0.42, 0.55)
    sun_height, sun_side = math.radians(rng.uniform(35, 65)), rng.uniform(-1.9, 1.9)

    # Only the camera and the objects' positions are drawn again: counts, shapes, sizes and colors
    # keep the shares they have above.
    for _ in range(ATTEMPTS):
        camera = _new_camera(rng, count)
        spots = placed_spots(rng, [(_foot(item), item.half[2]) for item in objects], camera)
        if spots is None:
            continue
        placed = tuple(
            dataclasses.replace(item, center=(*spot, item.half[2]))
            for item, spot in zip(objects, spots, strict=True)
        )
        # The sun stands behind the camera or beside it, so that we see lit sides.
        _, _, (x, y, _) = camera.axes()
        bearing, level = math.atan2(-y, -x) + sun_side, math.cos(sun_height)
        sun = (level * math.cos(bearing), level * math.sin(bearing), math.sin(sun_height))
        scene = _judged(Scene(placed, camera, ground, horizon, zenith, sun, ambient))
        if scene is not None:
            return scene
    raise RuntimeError(
        f"Scene {index} of {split!r}, seed {seed}: no view of {objects} after {ATTEMPTS} attempts."
    )


def caption(scene: Scene, seed: int) -> str:
    """Every object's size, color, shape and place, from left to right; `seed` picks the words."""
    rng = stream("caption", seed)
    words = {name: pair[int(rng.random() < 0.25)] for name, pair in WORDS.items()}
    *some, last = (f"a {o.size} {o.color} {words[o.shape]} {words[o.place]}" for o in scene.objects)
    return f"{', '.join(some)} and {last}" if some else last
