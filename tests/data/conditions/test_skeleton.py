import numpy as np
import pytest

from onediff_jax.data.conditions import skeleton
from onediff_jax.data.conditions.skeleton import KEYPOINTS, LEFT, MIDDLE, RIGHT

# Somebody who faces the viewer, in an image of 120 x 100: their left is on the right.
PLACES = {
    "nose": (50, 20), "left eye": (55, 15), "right eye": (45, 15), "left ear": (62, 18),
    "right ear": (38, 18), "left shoulder": (70, 40), "right shoulder": (30, 40),
    "left elbow": (84, 55), "right elbow": (16, 55), "left wrist": (92, 75),
    "right wrist": (8, 75), "left hip": (62, 74), "right hip": (38, 74), "left knee": (66, 94),
    "right knee": (34, 94), "left ankle": (68, 114), "right ankle": (32, 114),
}  # fmt: skip


def person(visibility: int = 2) -> np.ndarray:
    return np.array([[*PLACES[name], visibility] for name in KEYPOINTS], float)


def drawn(*people: np.ndarray, size: tuple[int, int] = (120, 100)) -> np.ndarray:
    return skeleton.pose_image(np.reshape(people, (-1, 17, 3)), *size)


def only(*names: str) -> np.ndarray:
    """The person with these keypoints known alone."""
    keypoints = person()
    keypoints[[name not in names for name in KEYPOINTS], 2] = 0
    return keypoints


def test_the_order_is_coco_s():
    sides = ["eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle"]
    assert list(KEYPOINTS) == ["nose"] + [f"{s} {p}" for p in sides for s in ("left", "right")]


@pytest.mark.parametrize(
    ("a", "b", "color"),
    [
        *((f"left {a}", f"left {b}", LEFT) for a, b in [("shoulder", "elbow"), ("elbow", "wrist")]),
        *((f"left {a}", f"left {b}", LEFT) for a, b in [("hip", "knee"), ("knee", "ankle")]),
        *((f"right {a}", f"right {b}", RIGHT) for a, b in [("shoulder", "elbow"), ("hip", "knee")]),
        *((f"right {a}", f"right {b}", RIGHT) for a, b in [("elbow", "wrist"), ("knee", "ankle")]),
        *((f"{s} shoulder", f"{s} hip", MIDDLE) for s in ("left", "right")),
        *((f"{s} ear", f"{s} shoulder", MIDDLE) for s in ("left", "right")),
        *((f"{s} ear", f"{s} eye", MIDDLE) for s in ("left", "right")),
        *(("nose", f"{s} eye", MIDDLE) for s in ("left", "right")),
        *((f"left {p}", f"right {p}", MIDDLE) for p in ("eye", "shoulder", "hip")),
    ],
)
def test_a_limb_joins_its_ends_in_its_color_and_is_missing_where_an_end_is(a, b, color):
    ends = np.array([PLACES[a], PLACES[b]], float)
    image = drawn(only(a, b)).astype(int)
    for share in (0.4, 0.5, 0.6):
        x, y = np.floor((1 - share) * ends[0] + share * ends[1]).astype(int)
        brightest = image[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).max(0)
        assert np.abs(brightest / brightest.max() - np.array(color) / 255).max() < 0.02
        assert brightest.max() > 120
    for one in (a, b):
        rows, columns = np.nonzero(drawn(only(one)).any(-1))
        assert 1 <= np.ptp(rows) + 1 <= 5 and 1 <= np.ptp(columns) + 1 <= 5


def test_head_and_torso_are_orange_left_is_green_and_right_is_blue():
    assert [*map(skeleton.point_color, range(5))] == [MIDDLE] * 5
    assert [*map(skeleton.point_color, range(5, 17))] == [LEFT, RIGHT] * 6
    assert MIDDLE[0] > MIDDLE[1] > MIDDLE[2] and max(LEFT) == LEFT[1] and max(RIGHT) == RIGHT[2]
    image = drawn(person())
    points = {name: image[y, x] for name, (x, y) in PLACES.items()}
    for i, name in enumerate(KEYPOINTS):
        assert np.abs(points[name].astype(int) - skeleton.point_color(i)).max() <= 60, name


def test_there_are_nineteen_limbs_and_every_keypoint_has_one():
    limbs = [limb for group in skeleton.LIMBS.values() for limb in group]
    assert len(limbs) == len({frozenset(limb) for limb in limbs}) == 19
    assert {end for limb in limbs for end in limb} == set(range(17))


@pytest.mark.parametrize("at", [(10.5, 6.5), (30.5, 40.0)])
def test_a_point_lies_on_its_pixel(at):
    keypoints = np.zeros((17, 3))
    keypoints[0] = (*at, 2)
    light = drawn(keypoints, size=(60, 50))[..., 0].astype(float)
    rows, columns = np.indices(light.shape)
    centre = (columns * light).sum() / light.sum(), (rows * light).sum() / light.sum()
    np.testing.assert_allclose(np.add(centre, 0.5), at, atol=1e-3)


def test_hidden_points_are_drawn_and_unknown_ones_are_not_wherever_they_are_said_to_be():
    np.testing.assert_array_equal(drawn(person(1)), drawn(person(2)))
    assert not drawn(person(0)).any()
    unknown = only("nose")
    known = drawn(unknown)
    unknown[1:, :2] = np.nan
    np.testing.assert_array_equal(drawn(unknown), known)


def test_nobody_is_black_and_several_people_are_all_there():
    assert drawn().shape == (120, 100, 3) and not drawn().any()
    small = person() * (0.3, 0.3, 1)
    other = small + (60, 0, 0)
    both = drawn(small, other)
    np.testing.assert_array_equal(both, np.maximum(drawn(small), drawn(other)))
    assert drawn(small).any() and drawn(other).any()


@pytest.mark.parametrize(("side", "thickness"), [(30, 1), (256, 1), (512, 2), (1000, 3.9)])
def test_lines_grow_with_the_image_and_points_are_three_times_as_wide(side, thickness):
    keypoints = np.zeros((17, 3))
    keypoints[5:7] = (0.25 * side, 10.3, 2), (0.75 * side, 12.9, 2)  # the shoulders, off the grid
    light = drawn(keypoints, size=(side, 2 * side))[..., 0] / 255
    assert light[:, side // 2].sum() == pytest.approx(thickness, rel=0.05)
    keypoints[6, 2] = 0
    disc = drawn(keypoints, size=(side, 2 * side))[..., 1] / 255
    assert disc.sum() == pytest.approx(np.pi * (1.5 * thickness) ** 2, rel=0.05)


@pytest.mark.parametrize("end", [(40.0, 20.0), (33.7, 41.2), (20.0, 12.5)])
def test_a_line_has_round_ends_and_the_area_of_geometry(end):
    image = np.zeros((60, 50, 3), np.uint8)
    skeleton.draw_line(image, np.array([20.0, 20.0]), np.array(end), 6.0, (255, 51, 0))
    length = np.hypot(end[0] - 20, end[1] - 20)
    assert image[..., 0].sum() / 255 == pytest.approx(6 * length + np.pi * 9, rel=0.02)
    whole = (image[..., 0] == 255).sum()
    assert 0.7 < whole / (6 * length + np.pi * 9) < 1


def test_a_person_in_a_mirror_is_the_image_in_a_mirror_with_left_and_right_exchanged():
    keypoints = person()
    keypoints[3:9, :2] += 1.37  # not symmetric
    swapped = [
        KEYPOINTS.index(n.replace("left", "L").replace("right", "left").replace("L", "right"))
        for n in KEYPOINTS
    ]
    mirrored = keypoints[swapped] * (-1, 1, 1) + (100, 0, 0)
    found, expected = drawn(mirrored)[:, ::-1].astype(int), drawn(keypoints).astype(int)
    np.testing.assert_allclose(found.max(-1), expected.max(-1), atol=60)  # later lines lie above
    assert ((found > 0).any(-1) == (expected > 0).any(-1)).all()
    left, right = ((expected == color).all(-1) for color in (LEFT, RIGHT))
    assert left.any() and right.any()
    assert (found[left] == RIGHT).all(-1).mean() > 0.95
    assert (found[right] == LEFT).all(-1).mean() > 0.95


def test_a_point_outside_the_image_pulls_its_limbs_there():
    keypoints = only("left shoulder", "left elbow")
    keypoints[7, 0] = 400
    far = drawn(keypoints)
    assert far[40, 95].any() or far[41, 95].any() or far[42, 95].any()
    keypoints[7, :2] = 1e12
    assert drawn(keypoints).any()
    assert not drawn(only("nose") + (500, 0, 0)).any()
