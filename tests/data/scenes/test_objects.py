"""Solids and figures have the outlines, patterns and names that they say."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from onediff_jax.data.scenes import figure, placement, render
from onediff_jax.data.scenes.geometry import PinholeCamera
from onediff_jax.data.scenes.objects import NAMED_COLORS, Person, Solid, draw_solid, noun
from onediff_jax.data.scenes.placement import Scene
from onediff_jax.data.scenes.worlds import WORLDS

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
FULL = WORLDS["full"]
AWAY, WIDE, PIXELS = 100.0, 3.2, 64  # of a camera, and what it sees, in world units
PIXEL = WIDE / PIXELS
SPOT = (1.5, -0.7)


def alone(item, azimuth, away=AWAY):
    """An object before a camera that looks at its middle from afar, level."""
    x, y, z = item.center
    eye = (x + away * math.cos(azimuth), y + away * math.sin(azimuth), z)
    angle = 2 * math.degrees(math.atan(WIDE / 2 / away))
    light = render.Light(*((0.9,) * 3,) * 3, (0.0, 0.0, 1.0), 0.5)
    return Scene(FULL, (item,), (PinholeCamera(eye, (x, y, z), angle),), light, "", "")


def half_widths(item, azimuth):
    """Of an object's outline, by rows from the top of the image."""
    scene = alone(item, azimuth)
    outline = placement.sight(scene, scene.cameras[0], PIXELS).outlines[0]
    return outline.reshape(PIXELS, PIXELS).sum(axis=1) * PIXEL / 2


def solid(shape, material="matte", second="", yaw=0.4, half=None):
    half = half or {"sphere": (0.8,) * 3, "box": (0.4, 0.7, 0.9)}.get(shape, (0.5, 0.5, 0.9))
    there = Solid(shape, "red", second, material, "large", "", (0.0, 0.0, half[2]), half, yaw)
    return there.at(*SPOT)


def expected_half_width(it, height, azimuth):
    """Of the outline of a solid, `height` above the ground."""
    x, y, z = it.half
    if it.shape == "box":
        turn = azimuth - it.yaw
        return abs(x * math.sin(turn)) + abs(y * math.cos(turn))
    if it.shape == "cone":
        return x * (1 - height / (2 * z))
    beyond = abs(height - z) - (z - x) if it.shape in ("sphere", "capsule") else 0
    return math.sqrt(max(x**2 - max(beyond, 0) ** 2, 0))


@pytest.mark.parametrize("shape", FULL.shapes)
def test_a_solid_has_the_outline_of_its_shape_and_takes_up_the_ground_that_it_says(shape):
    it, widest = solid(shape), 0.0
    radius, tall = it.extent
    for azimuth in np.linspace(0, np.pi, 9):
        found = half_widths(it, azimuth)
        heights = it.half[2] + (PIXELS / 2 - 0.5 - np.arange(PIXELS)) * PIXEL
        inside = (heights > 0) & (heights < 2 * tall)
        expected = [expected_half_width(it, height, azimuth) for height in heights[inside]]
        assert np.abs(found[inside] - expected).max() < 1.6 * PIXEL
        assert (found[~inside][1:-1] == 0).all()  # the ground is at 0, and so is its foot
        widest = max(widest, *expected)
    assert widest <= radius + 1e-9 and widest > 0.98 * radius


def changes(line):
    """How often the color changes along a line of an image, from red to blue or back."""
    return np.count_nonzero(np.diff((line[:, 0] > line[:, 2]).astype(int)))


def seen(it, azimuth=0.4):
    scene = alone(it, azimuth, 10.0)  # images end at render.FAR
    shot = render.Shot(scene.solids(), scene.light, scene.cameras[0])
    [image] = render.render([shot], 48)
    mine = image.instances == 1
    middle = mine.shape[0] // 2
    upright, across = mine[:, middle], mine[middle]
    return image.image[mine], image.image[upright, middle], image.image[middle, across]


def test_stripes_lie_across_checks_along_both_ways_and_what_shines_has_a_highlight():
    box = (0.6, 0.6, 0.9)
    plain = seen(solid("box", half=box))
    striped = seen(solid("box", "striped", "blue", half=box))
    checkered = seen(solid("box", "checkered", "blue", half=box))
    assert [changes(line) for line in plain] == [0, 0, 0]
    assert [changes(line) for line in striped[1:]] == [4, 0]  # of five bands
    assert min(changes(line) for line in checkered[1:]) >= 2
    matte, glossy = (seen(solid("sphere", m))[0] for m in ("matte", "glossy"))
    assert glossy.min(axis=1).max() > matte.min(axis=1).max() + 0.1  # red alone reflects no blue


@pytest.mark.parametrize(
    ("material", "name"),
    [("matte", "red cone"), ("glossy", "shiny red cone"), ("striped", "striped red cone"),
     ("checkered", "checkered red cone")],
)  # fmt: skip
def test_a_solid_is_called_by_its_material_color_and_shape(material, name):
    assert noun(solid("cone", material, "blue")) == name


def test_drawn_solids_stand_on_the_ground_in_two_sizes_and_their_shapes_proportions():
    rng = np.random.default_rng(0)
    drawn = [
        draw_solid(rng, FULL.shapes, "red", ["white", "black"], list(FULL.materials)[i % 4])
        for i in range(400)
    ]
    for it in drawn:
        x, y, z = it.half
        assert it.center == (0, 0, z) and it.color == "red"
        assert it.second in (("white", "black") if it.material[-2:] == "ed" else ("",))
        assert x == y or it.shape == "box"
        assert z == x if it.shape == "sphere" else z > 1.5 * x or it.shape != "capsule"
    for shape in FULL.shapes:
        mine = [it for it in drawn if it.shape == shape]
        tall = {s: [it.half[2] for it in mine if it.size == s] for s in ("small", "large")}
        assert max(tall["small"]) < min(tall["large"])
    assert 0.58 < np.mean([it.size == "large" for it in drawn]) < 0.72
    assert {it.second for it in drawn} == {"", "white", "black"}


@pytest.fixture(scope="module")
def person():
    who = figure.draw_identity(np.random.default_rng(3), list(NAMED_COLORS))
    pose = figure.draw_pose(np.random.default_rng(4), "waving with the left hand")
    return Person(who, pose, "", SPOT, 0.7)


def test_a_figure_is_where_it_stands_and_turned_as_it_says(person):
    assert person.color == person.who.shirt and noun(person) == person.name == "person"
    ahead = np.array((math.cos(person.yaw), math.sin(person.yaw)))
    left = np.array((-math.sin(person.yaw), math.cos(person.yaw)))
    at = dict(zip(figure.JOINTS, person.keypoints()[:, :2] - SPOT, strict=True))
    assert (at["nose"] - at["left_ear"]) @ ahead > 0.1 and abs(at["nose"] @ left) < 0.1
    assert at["left_shoulder"] @ left > 0.1 > -0.1 > at["right_shoulder"] @ left
    moved = person.at(0.0, 2.0)
    assert_allclose(moved.keypoints() - person.keypoints(), [(-1.5, 2.7, 0)] * 17, atol=1e-12)
    # Seen from ahead its left arm, which waves, is on our right; seen from behind on our left.
    for turn, side in ((0.0, 1), (math.pi, -1)):
        scene = alone(person, person.yaw + turn)
        mask = placement.sight(scene, scene.cameras[0], PIXELS).outlines[0]
        columns = np.flatnonzero(mask.reshape(PIXELS, PIXELS)[: PIXELS // 2].any(axis=0))
        assert side * (columns.min() + columns.max() - PIXELS) * PIXEL > 0.3


def test_keypoints_lie_within_the_figure(person):
    limbs = [part for part in person.primitives() if part.family == 2]
    for point in person.keypoints():
        gaps = []
        for limb in limbs:
            axis, away = limb.last - limb.first, point - limb.first
            share = np.clip(away @ axis / max(axis @ axis, 1e-12), 0, 1)
            gaps.append(np.linalg.norm(away - share * axis) - limb.shape)
        assert min(gaps) < 0
