"""Images of scenes, beside a naive ray tracer and beside what depth says."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from onediff_jax.data.scenes import primitives, render
from onediff_jax.data.scenes.geometry import PinholeCamera
from onediff_jax.data.scenes.objects import NAMED_COLORS, Solid
from onediff_jax.data.scenes.placement import draw_scene
from onediff_jax.data.scenes.worlds import WORLDS

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
SUN = (0.48, -0.6, 0.64)
RED, BLUE = (0.9, 0.1, 0.1), (0.1, 0.2, 0.9)
VIEW = PinholeCamera((0.5, -6.0, 2.0), (0.0, 0.0, 0.6), 45.0)


class NaiveTracer:
    """Every ray against every surface, in float64; matte solids, soft shadows by many sun samples.

    A solid is a union of convex pieces, each the intersection of sets s·p² + b·p + c <= 0.
    """

    def __init__(self, items, light):
        self.light = light
        self.solids = [(item, self.pieces_of(item.shape, *item.half)) for item in items]

    @staticmethod
    def pieces_of(shape, x, y, z):
        def plane(axis, sign, reach):
            return np.zeros(3), sign * np.eye(3)[axis], -reach

        def ball(height):
            return np.ones(3), np.array((0, 0, -2 * height)), height**2 - x**2

        ends = [plane(2, 1, z), plane(2, -1, z)]
        match shape:
            case "sphere":
                return [[ball(0)]]
            case "box":
                sides = [plane(axis, s, r) for axis, r in ((0, x), (1, y)) for s in (1, -1)]
                return [ends + sides]
            case "cylinder":
                return [[(np.array((1, 1, 0)), np.zeros(3), -(x**2)), *ends]]
            case "cone":  # x² + y² = (x/2)² (1 - z/Z)², in its radius x and half height Z
                k = (x / 2) ** 2
                quadric = np.array((1, 1, -k / z**2)), np.array((0, 0, 2 * k / z)), -k
                return [[quadric, *ends]]
            case "capsule":
                straight = z - x
                tube = np.array((1, 1, 0)), np.zeros(3), -(x**2)
                caps = [plane(2, 1, straight), plane(2, -1, straight)]
                return [[ball(straight)], [ball(-straight)], [tube, *caps]]

    def hit(self, item, pieces, origin, direction):
        """Length to the first entry and the outer normal there, for rays of the world."""
        c, s = np.cos(item.yaw), np.sin(item.yaw)
        turn = np.array(((c, -s, 0), (s, c, 0), (0, 0, 1)))
        o, d = (origin - item.center) @ turn, direction @ turn
        best, normal = np.full(len(d), np.inf), np.zeros_like(d)
        for piece in pieces:
            for square, linear, constant in piece:
                a = (d * d) @ square
                b = (o * d) @ square + d @ linear / 2
                e = (o * o) @ square + o @ linear + constant
                root = np.sqrt(b * b - a * e)
                straight = np.abs(a) < 1e-12
                for t in (
                    np.where(straight, -e / (2 * b), (-b + sign * root) / a) for sign in (1, -1)
                ):
                    p = o + t[:, None] * d
                    inside = [(p * p) @ q + p @ m + k < 1e-9 for q, m, k in piece]
                    first = np.all(inside, axis=0) & (t > 1e-6) & (t < best)
                    best = np.where(first, t, best)
                    normal[first] = (2 * p * square + linear)[first] @ turn.T
        return best, normal / np.linalg.norm(normal, axis=1, keepdims=True)

    def render(self, camera, size, fine):
        """Image from fine x fine rays a pixel, and depth and instances at pixel centres."""
        right, down, forward = np.array(camera.axes())
        sun, rng = np.array(self.light.sun), np.random.default_rng(0)
        colors = [np.array(NAMED_COLORS[item.color]) for item, _ in self.solids]
        linear = [np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for c in
                  [*map(np.array, self.light[:3]), *colors]]  # fmt: skip
        ground, horizon, zenith, *albedo = linear
        total, middle = 0, fine // 2
        for row in range(fine):
            for column in range(fine):
                ticks = [(np.arange(size) + (k + 0.5) / fine) / size - 0.5 for k in (column, row)]
                x, y = (g.reshape(-1, 1) / camera.focal for g in np.meshgrid(*ticks))
                direction = right * x + down * y + forward
                origin = np.broadcast_to(camera.eye, direction.shape)
                hits = [self.hit(*each, origin, direction) for each in self.solids]
                floor = np.where(direction[:, 2] < 0, -camera.eye[2] / direction[:, 2], np.inf)
                lengths = np.array([floor, *(length for length, _ in hits)])
                owner, depth = lengths.argmin(axis=0), lengths.min(axis=0)
                seen = np.minimum(depth, render.FAR)
                if row == column == middle:
                    instances, depths = owner, seen
                point = origin + seen[:, None] * direction
                normal = np.choose(owner[:, None], [np.array((0, 0, 1.0)), *(n for _, n in hits)])
                # One point of the sun's disc for each ray.
                radius, turn = 0.09 * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
                side = np.cross(sun, (0, 0, 1)) / np.hypot(*sun[:2])
                toward = sun + radius * (np.cos(turn) * side + np.sin(turn) * np.cross(sun, side))
                direct = np.maximum(normal @ toward, 0)
                around = 0.75 + 0.25 * normal[:, 2]
                for k, (item, pieces) in enumerate(self.solids, 1):
                    rays = np.broadcast_to(toward, point.shape)
                    other = owner != k
                    direct[other & np.isfinite(self.hit(item, pieces, point, rays)[0])] = 0
                    away = np.array(item.center) - point
                    gap = np.linalg.norm(away, axis=1)
                    facing = np.maximum((normal * away).sum(axis=1) / gap, 0)
                    hidden = 0.75 * facing * np.minimum(min(item.half) ** 2 / gap**2, 1)
                    around = around * np.where(other, 1 - hidden, 1)
                light = self.light.ambient * around + (1 - self.light.ambient) * direct
                color = np.choose(owner[:, None], [ground, *albedo]) * light[:, None]
                height = direction[:, 2] / np.linalg.norm(direction, axis=1) / render.SKY_HEIGHT
                sky = horizon + (zenith - horizon) * np.clip(height, 0, 1)[:, None]
                total = total + np.where(np.isfinite(depth)[:, None], color, sky)
        mean = np.clip(total / fine**2, 0, 1)
        image = np.where(mean <= 0.0031308, 12.92 * mean, 1.055 * mean ** (1 / 2.4) - 0.055)
        return (
            image.reshape(size, size, 3),
            depths.reshape(size, size),
            instances.reshape(size, size),
        )


def light(ambient=0.4):
    return render.Light((0.8,) * 3, (0.95,) * 3, (0.6, 0.7, 0.9), SUN, ambient)


def shot(*objects, size=48, camera=VIEW):
    solids = primitives.solids_of(objects)
    [seen] = render.render([render.Shot(solids, light(), camera)], size)
    return seen


def crowd():
    """Three objects that hide parts of one another, the last of two limbs."""
    box = primitives.box(np.zeros(3), np.array((0.5, 0.4, 0.7)), RED).at(0.6, (0.9, 0.6, 0.7))
    cone = primitives.tapered(np.array((-1.0, 0.2, 0.9)), np.array((0.7, 0.7, 0.9)), 0.0, BLUE)
    limbs = [
        primitives.capsule(np.array((0.1, -1.6, 0.3)), np.array((0.1, -1.4, 1.3)), 0.25, RED),
        primitives.capsule(np.array((0.1, -1.4, 1.3)), np.array((0.7, -1.5, 1.6)), 0.2, BLUE),
    ]
    return [box], [cone], limbs


def solid(shape, color, half, yaw, x, y):
    made = Solid(shape, color, "", "matte", "large", "", (0.0, 0.0, half[2]), half, yaw)
    return made.at(x, y)


def scenes_of_every_shape():
    yield (
        [
            solid("sphere", "red", (0.8, 0.8, 0.8), 0.0, -0.9, 0.2),
            solid("box", "blue", (0.5, 0.6, 0.7), 0.6, 1.1, 0.3),
            solid("cone", "green", (0.5, 0.5, 0.6), 0.3, 0.2, -1.2),
        ],
        light(),
        VIEW,
    )
    yield (
        [
            solid("cylinder", "yellow", (0.6, 0.6, 0.8), 0.0, -0.9, 0.0),
            solid("capsule", "cyan", (0.4, 0.4, 0.9), 0.0, 0.6, 0.4),
        ],
        light(0.6),
        PinholeCamera((0.0, -4.0, 4.0), (0.0, 0.0, 0.5), 50.0),
    )
    for index in range(2):
        scene = draw_scene(WORLDS["basic"], 3, "train", index, 1)
        yield scene.objects, scene.light, scene.cameras[0]


def test_images_depths_and_instances_are_those_of_a_naive_ray_tracer():
    """Another program for the same light: few samples here, many there."""
    for objects, lit, camera in scenes_of_every_shape():
        solids = primitives.solids_of([item.primitives() for item in objects])
        [seen] = render.render([render.Shot(solids, lit, camera)], 40)
        image, depth, instances = NaiveTracer(objects, lit).render(camera, 40, 5)
        same = seen.instances == instances
        assert same.mean() > 0.998  # a ray along an edge may round to either side
        assert_allclose(seen.depth[same], depth[same], rtol=1e-4)
        difference = np.abs(seen.image - image)
        assert difference.mean() < 0.006
        assert np.median(difference) < 0.004


def points_of(seen, camera):
    """Points of pixel centres in the camera's axes."""
    size = len(seen.depth)
    ticks = np.arange(size) + 0.5
    pixels = np.stack([*np.meshgrid(ticks, ticks), np.ones((size, size))], axis=-1)
    return pixels @ np.linalg.inv(camera.intrinsics(size)).T * seen.depth[..., None]


def test_the_ground_and_a_wall_have_the_depths_of_planes():
    view = PinholeCamera((0.0, -5.0, 1.5), (0.0, 0.0, 1.5), 45.0)
    slope = (np.arange(32) + 0.5 - 16) / (view.focal * 32)
    expected = np.where(slope > 0, np.minimum(1.5 / np.abs(slope), render.FAR), render.FAR)
    ground = shot(camera=view, size=32)
    assert_allclose(ground.depth, np.repeat(expected[:, None], 32, axis=1), rtol=1e-5)
    assert (ground.instances == 0).all()
    wall = shot(
        [primitives.box(np.array((0, 1, 9)), np.array((9, 1, 9)), RED)], camera=view, size=32
    )
    assert (wall.instances == 1)[:20].all()
    assert_allclose(wall.depth[wall.instances == 1], 5, rtol=1e-6)


def test_normals_are_square_to_what_depth_shows():
    seen = shot(*crowd(), size=120)
    points = points_of(seen, VIEW)
    across = points[1:-1, 2:] - points[1:-1, :-2]
    down = points[2:, 1:-1] - points[:-2, 1:-1]
    expected = np.cross(down, across)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    expected *= -np.sign((expected * points[1:-1, 1:-1]).sum(-1, keepdims=True))
    inner = np.ones((118, 118), bool)
    for y in (0, 1, 2):
        for x in (0, 1, 2):
            inner &= seen.instances[y : y + 118, x : x + 118] == seen.instances[1:-1, 1:-1]
    inner &= seen.depth[1:-1, 1:-1] < render.FAR
    cosine = (expected * seen.normals[1:-1, 1:-1]).sum(-1)
    for instance in range(4):
        here = inner & (seen.instances[1:-1, 1:-1] == instance)
        assert here.sum() > 100
        assert (cosine[here] > 0.98).mean() > 0.9  # not across an object's own edges
    sky = seen.depth == render.FAR
    assert (np.linalg.norm(seen.normals, axis=-1)[~sky] > 0.999).all()


def test_shots_of_other_scenes_and_cameras_do_not_matter():
    """Each is what it is alone: families, numbers, lights and culled rays are kept apart."""
    above = PinholeCamera((0.0, -4.0, 4.0), (0.0, 0.0, 0.5), 50.0)
    box, cone, limbs = crowd()
    shots = [
        render.Shot(primitives.solids_of(objects), light(ambient), camera)
        for objects, ambient, camera in (
            ([box, limbs], 0.4, VIEW),
            ([limbs, cone, box], 0.6, above),
            ([], 0.5, VIEW),
            ([cone], 0.3, VIEW),
        )
    ]
    for one, among in zip(shots, render.render(shots, 24), strict=True):
        [alone] = render.render([one], 24)
        for ours, theirs in zip(alone, among, strict=True):
            assert_allclose(ours, theirs, atol=1e-6)


def test_pixels_where_nothing_changes_lose_little_by_their_single_ray(monkeypatch):
    quick = shot(*crowd(), size=64)
    monkeypatch.setattr(render, "CONTRAST", -1.0)  # five rays everywhere
    full = shot(*crowd(), size=64)
    assert_array_equal(quick.depth, full.depth)
    difference = np.abs(quick.image - full.image).max(axis=-1)
    assert 0 < difference.mean() < 1e-3
    assert difference.max() < 0.02


def test_bands_alternate_across_the_height():
    plain = primitives.tapered(np.array((0, 0, 1.0)), np.array((0.8, 0.8, 1.0)), 1.0, RED)
    striped = primitives.Primitive(**{**vars(plain), "second": BLUE, "bands": 5.0})
    level = PinholeCamera((0.0, -6.0, 1.0), (0.0, 0.0, 1.0), 30.0)
    column = shot([striped], size=96, camera=level).image[:, 48]
    mine = shot([plain], camera=level, size=96).instances[:, 48] > 0
    changes = np.flatnonzero(np.diff(((column[:, 2] > column[:, 0]) & mine).astype(int)))
    assert len(changes) == 4  # red, blue, red, blue, red
    assert_allclose(np.diff(changes), np.diff(changes).mean(), atol=1.5)


def test_a_highlight_lies_where_the_sun_is_mirrored():
    middle = np.array((0, 0, 1.0))
    matte = primitives.capsule(middle, middle, 1.0, (0.3, 0.05, 0.05))
    glossy = primitives.Primitive(**{**vars(matte), "gloss": 1.0})
    dull, shiny = shot([matte], size=64), shot([glossy], size=64)
    extra = (shiny.image - dull.image).sum(axis=-1)
    assert (extra >= 0).all() and (extra[shiny.instances == 0] < 0.3).all()
    row, column = np.unravel_index(extra.argmax(), extra.shape)
    normal = VIEW.camera_to_world[:3, :3] @ shiny.normals[row, column]
    ray = VIEW.camera_to_world[:3, :3] @ points_of(shiny, VIEW)[row, column]
    mirrored = ray - 2 * (ray @ normal) * normal
    assert mirrored @ SUN / np.linalg.norm(mirrored) > 0.99


def test_instances_are_the_objects_and_not_their_primitives():
    assert set(np.unique(shot(*crowd()).instances)) == {0, 1, 2, 3}
    assert_array_equal(primitives.solids_of(crowd()[::-1]).instance, [3, 2, 1, 1])


def test_cameras_are_rotations_and_look_at_their_targets():
    view = PinholeCamera((2.0, -5.0, 3.0), (0.3, 0.2, 0.5), 45.0)
    pose = view.camera_to_world.astype(np.float64)
    assert_allclose(pose[:3, :3].T @ pose[:3, :3], np.eye(3), atol=1e-6)
    assert_allclose(np.linalg.det(pose[:3, :3]), 1, atol=1e-6)
    ahead = np.hypot(1.7, np.hypot(5.2, 2.5))
    assert_allclose(np.linalg.inv(pose) @ [0.3, 0.2, 0.5, 1], [0, 0, ahead, 1], atol=1e-5)
    assert pose[2, 0] == 0 and pose[2, 1] < 0  # level, and y points down
    K = view.intrinsics(64)
    assert_allclose(K, [[77.25, 0, 32], [0, 77.25, 32], [0, 0, 1]], atol=0.01)
    point = np.array([(1.0, 0.5, 0.2)])
    xy, depth = view.project(point)
    local = (np.linalg.inv(pose) @ [*point[0], 1])[:3]
    assert_allclose((K @ local / local[2])[:2] / 64, xy[0], atol=1e-5)
    assert_allclose(depth, local[2], rtol=1e-5)
