"""Rays and solids, beside formulas by hand and beside walking along each ray."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from onediff_jax.data.scenes import intersections
from onediff_jax.data.scenes.geometry import Vector

START, END, RADIUS = Vector(-0.3, 0.1, -0.8), Vector(0.4, -0.2, 0.5), 0.35


def vectors(array):
    return Vector(*np.asarray(array, float).T)


def cylinder(origin, direction):
    return intersections.tapered_distance(origin, direction, 1.0)


def cone(origin, direction):
    return intersections.tapered_distance(origin, direction, 0.0)


def trunk(origin, direction):
    return intersections.tapered_distance(origin, direction, 0.4)


def capsule(origin, direction):
    return intersections.capsule_distance(START, END, RADIUS, origin, direction)


def ball(origin, direction):
    return intersections.capsule_distance(END, END, RADIUS, origin, direction)


def box(origin, direction):
    return intersections.box_distance(origin, direction)


def inside_tapered(top):
    def inside(p):
        radius = 1 + (top - 1) * (p.z + 1) / 2
        return (np.abs(p.z) <= 1) & (p.x**2 + p.y**2 <= radius**2)

    return inside


def inside_capsule(start, end):
    def inside(p):
        axis, away = end - start, p - start
        share = np.clip(axis.dot(away) / max(axis.dot(axis), 1e-12), 0, 1)
        gap = away - axis * share
        return gap.dot(gap) <= RADIUS**2

    return inside


SOLIDS = {
    "cylinder": (cylinder, inside_tapered(1.0)),
    "cone": (cone, inside_tapered(0.0)),
    "trunk": (trunk, inside_tapered(0.4)),
    "capsule": (capsule, inside_capsule(START, END)),
    "ball": (ball, inside_capsule(END, END)),
    "box": (box, lambda p: p.map(np.abs).fold(np.maximum) <= 1),
}


def random_rays(number, seed=0):
    rng = np.random.default_rng(seed)
    origin = rng.normal(size=(number, 3))
    origin *= 4 / np.linalg.norm(origin, axis=1, keepdims=True)
    return vectors(origin), vectors(rng.uniform(-0.6, 0.6, (number, 3)) - origin / 2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SOLIDS)
def test_rays_enter_where_walking_along_them_does(name):
    distance, inside = SOLIDS[name]
    origin, direction = random_rays(500)
    steps = np.linspace(0, 6, 6001)[:, None]
    walked = inside(origin + direction * steps)
    first = np.where(walked.any(axis=0), steps[walked.argmax(axis=0), 0], np.inf)
    entry = distance(origin, direction)
    agree = np.isfinite(entry) == np.isfinite(first)
    assert agree.mean() > 0.99  # a ray may graze an edge between two steps
    both = np.isfinite(entry) & np.isfinite(first)
    assert 20 < both.sum() < 480
    assert (np.abs(entry - first)[both] < 2e-3).mean() > 0.995


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SOLIDS)
def test_rays_that_lead_away_or_begin_inside_enter_nothing(name):
    distance, inside = SOLIDS[name]
    origin, direction = random_rays(500, seed=5)
    assert np.isinf(distance(origin, direction * -1)).all()
    middle = vectors(np.tile((0.4, -0.2, 0.5) if name == "ball" else (0.03, -0.04, -0.1), (500, 1)))
    assert inside(middle).all()
    assert np.isinf(distance(middle, direction)).all()


def test_a_quarter_turn_takes_x_to_y():
    turned = Vector(2.0, 3.0, 4.0).turn(0.0, 1.0)
    assert (turned.x, turned.y, turned.z) == (-3, 2, 4)


def test_a_cylinder_and_a_cone_have_the_depths_of_their_formulas():
    y, z = np.meshgrid(np.linspace(-0.9, 0.9, 7), np.linspace(-0.9, 0.9, 7))
    side = Vector(-5 + 0 * y, y, z), Vector(1.0, 0.0, 0.0)
    assert_allclose(cylinder(*side), 5 - np.sqrt(1 - y**2), atol=1e-12)
    radius = (1 - z) / 2
    hit = radius > np.abs(y) + 1e-9
    expected = 5 - np.sqrt(np.maximum(radius**2 - y**2, 0))
    assert_allclose(cone(*side)[hit], expected[hit], atol=1e-9)
    assert np.isinf(cone(*side)[~hit]).all()
    across = np.linspace(0.05, 0.95, 9)
    above = Vector(across, 0 * across, 7 + 0 * across), Vector(0.0, 0.0, -2.0)
    assert_allclose(cylinder(*above), 3, atol=1e-12)  # in units of the direction
    assert_allclose(cone(*above), (7 - (1 - 2 * across)) / 2, atol=1e-9)
    below = Vector(across, 0 * across, -3 + 0 * across), Vector(0.0, 0.0, 1.0)
    assert_allclose(cone(*below), 2, atol=1e-12)


def test_a_capsule_is_a_cylinder_with_balls_at_its_ends():
    start, end = Vector(0.0, 0.0, 0.0), Vector(0.0, 0.0, 2.0)
    height = np.array([-0.4, -0.2, 0.5, 1.9, 2.3])
    over = np.maximum(np.maximum(-height, height - 2), 0)
    origin = Vector(np.full(5, 4.0), np.zeros(5), height)
    entry = intersections.capsule_distance(start, end, 0.5, origin, Vector(-1.0, 0.0, 0.0))
    assert_allclose(entry, 4 - np.sqrt(0.25 - over**2), atol=1e-9)
    along = intersections.capsule_distance(
        start, end, 0.5, Vector(0.3, 0.0, 6.0), Vector(0.0, 0.0, -1.0)
    )
    assert_allclose(along, 6 - (2 + np.sqrt(0.25 - 0.09)), atol=1e-4)


@pytest.mark.parametrize("name", ["capsule", "ball"])
def test_a_shadow_falls_where_a_ray_would_enter(name):
    ends = (START, END) if name == "capsule" else (END, END)
    origin, direction = random_rays(4000, seed=1)
    for sign in (1, -1):  # towards and away
        blocked = intersections.capsule_blocks(*ends, RADIUS, origin, direction * sign)
        entered = intersections.capsule_distance(*ends, RADIUS, origin, direction * sign)
        assert_array_equal(blocked, np.isfinite(entered))
    assert not blocked.any()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SOLIDS)
def test_normals_are_square_to_the_surface(name):
    origin, direction = random_rays(3000, seed=2)
    rng = np.random.default_rng(3)
    distance, _ = SOLIDS[name]
    entry = distance(origin, direction)
    point = origin + direction * entry
    normal = {
        "capsule": lambda p: intersections.capsule_normal(START, END, p),
        "ball": lambda p: intersections.capsule_normal(END, END, p),
        "box": lambda p: intersections.box_normal(p),
    }.get(name)
    if normal is None:
        top = {"cylinder": 1.0, "cone": 0.0, "trunk": 0.4}[name]
        normal = lambda p: intersections.tapered_normal(p, top)  # noqa: E731
    normal = normal(point)
    normal = normal * (1 / np.sqrt(normal.dot(normal)))
    hit = np.isfinite(entry)
    assert (normal.dot(direction)[hit] < 1e-6).mean() > 0.999  # outer
    for _ in range(2):  # neighbouring rays meet the tangent plane
        near = direction + vectors(rng.normal(size=(3000, 3)) * 1e-4)
        step = origin + near * distance(origin, near) - point
        off = np.abs(normal.dot(step)) / np.sqrt(step.dot(step))
        assert (off[np.isfinite(off)] < 0.02).mean() > 0.98
