"""Cameras of a `transforms.json`, and what is refused in one."""

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose
from rigs import random_pose

from onediff_jax.data.sources.nerfstudio import camera_of, entries_in
from onediff_jax.errors import BadRecord
from onediff_jax.ops.cameras import opengl_from_opencv

SHARED = {
    "camera_model": "OPENCV",
    "fl_x": 80.0,
    "fl_y": 90,
    "cx": 33.5,
    "cy": 20,
    "w": 64,
    "h": 48,
}
PICTURE = (48, 64)


def transforms(count=3, shared=SHARED):
    poses = random_pose(np.random.default_rng(3), count)
    frames = [
        {"file_path": f"images/{i}.png", "transform_matrix": pose.tolist()}
        for i, pose in enumerate(poses)
    ]
    return {**shared, "frames": frames}


def read(values):
    return entries_in(json.dumps(values).encode(), "a file")


def only(shared, image=None):
    """K and size of a file's only frame."""
    camera, size = camera_of(read(transforms(1, shared))[0], "there", image)
    return camera.intrinsics, size


def test_poses_are_the_files_with_opencv_axes_in_its_order():
    given = transforms()
    entries = read(given)
    assert [entry["file_path"] for entry in entries] == [f"images/{i}.png" for i in range(3)]
    for frame, entry in zip(given["frames"], entries, strict=True):
        camera, size = camera_of(entry, "there")
        found = opengl_from_opencv(camera.camera_to_world)
        assert_allclose(found, frame["transform_matrix"], atol=1e-12)
        assert_allclose(camera.intrinsics, [[80, 0, 33.5], [0, 90, 20], [0, 0, 1]])
        assert size == (48, 64)
        entry["transform_matrix"] = entry["transform_matrix"][:3]  # the last row says nothing
        assert_allclose(camera_of(entry, "there")[0].camera_to_world, camera.camera_to_world)


def test_a_frames_own_intrinsics_come_before_the_files():
    given = transforms()
    given["frames"][1] |= {"fl_x": 120.0, "cx": 10, "w": 32, "h": 16}
    _, own, other = (camera_of(entry, "there") for entry in read(given))
    assert_allclose(own[0].intrinsics, [[120, 0, 10], [0, 90, 20], [0, 0, 1]])
    assert_allclose(other[0].intrinsics, [[80, 0, 33.5], [0, 90, 20], [0, 0, 1]])
    assert [own[1], other[1]] == [(16, 32), (48, 64)]


def test_what_a_file_leaves_out_has_the_usual_meaning():
    """Blender's files have an angle across and no size."""
    right = {"camera_angle_x": np.pi / 2}
    K, size = only(right, PICTURE)
    assert_allclose(K, [[32, 0, 32], [0, 32, 24], [0, 0, 1]])
    assert size == PICTURE
    half = {"camera_angle_y": 2 * np.arctan(0.5), "w": 60, "h": 40}
    assert_allclose(only(right | half)[0], [[30, 0, 30], [0, 40, 20], [0, 0, 1]])
    assert_allclose(only({"fl_x": 50, "w": 60, "h": 40})[0], [[50, 0, 30], [0, 50, 20], [0, 0, 1]])
    # A null is a field that is missing; what is in pixels comes before what is in radians.
    assert_allclose(only(right | {"fl_x": None, "w": None}, PICTURE)[0][0, 0], 32)
    assert_allclose(only(right | {"fl_x": 50, "w": 60, "h": 40})[0][0, 0], 50)
    # Cut images can have their middle elsewhere, and halved ones a size that is not whole.
    K, size = only({"fl_x": 50, "cx": -3, "w": 60.5, "h": 40})
    assert K[0, 2] == -3 and size == (40, 60.5)


@pytest.mark.parametrize("name", ["fl_x", "fl_y", "cx", "cy"])
def test_what_is_in_pixels_needs_the_size_that_they_are_of(name):
    """The image may be a smaller one than the file's."""
    with pytest.raises(BadRecord, match="^there: h is None"):
        only({"camera_angle_x": 1.0, name: 30}, PICTURE)


def test_rotations_are_made_exact_where_a_file_has_few_digits():
    given = transforms()
    for frame in given["frames"]:
        frame["transform_matrix"] = np.round(frame["transform_matrix"], 4).tolist()
    for entry in read(given):
        camera, _ = camera_of(entry, "there")
        assert_allclose(camera.rotation.T @ camera.rotation, np.eye(3), atol=1e-12)
        found = opengl_from_opencv(camera.camera_to_world)
        assert_allclose(found, entry["transform_matrix"], atol=2e-4)


def turned(change):
    """A frame's matrix, its 3 x 3 part multiplied by another from the right."""

    def mend(frame):
        pose = np.array(frame["transform_matrix"])
        pose[:3, :3] = pose[:3, :3] @ np.array(change, float)
        frame["transform_matrix"] = pose.tolist()

    return mend


def entry(row, column, value):
    def mend(frame):
        frame["transform_matrix"][row][column] = value

    return mend


@pytest.mark.parametrize(
    ("mend", "message"),
    [
        (lambda f: f.pop("transform_matrix"), "transform_matrix is None; it must be 4 rows of 4"),
        (lambda f: f.update(transform_matrix=[[1], [2, 3]]), r"\[\[1\], \[2, 3\]\]; it must be 4"),
        (lambda f: f.update(transform_matrix=np.eye(3).tolist()), "4 rows of 4 numbers, or 3"),
        (entry(0, 0, "one"), "transform_matrix is .*one.*; it must be 4 rows of 4 numbers"),
        (entry(0, 0, float("nan")), "transform_matrix: .*numbers that are not finite"),
        (entry(2, 3, float("inf")), "transform_matrix: .*numbers that are not finite"),
        (entry(3, 3, 2), r"transform_matrix: the last row .* is .*2.*; it must be 0 0 0 1"),
        (turned(np.diag([1, 1, -1])), "transform_matrix: .* determinant -1; it is left-handed"),
        (turned(2 * np.eye(3)), "not a rotation .determinant 8.; .*; their lengths are 2, 2, 2"),
        (turned([[1, 0.1, 0], [0, 1, 0], [0, 0, 1]]), "transform_matrix: .*not a rotation"),
        (turned(np.diag([1, 1, 0])), "not a rotation .determinant -?0"),
        (turned([[1, 1, 0], [0, 0, 0], [0, 0, 1]]), "not a rotation .*lengths are 1, 1, 1"),
        (lambda f: f.update(fl_x=float("nan")), "fl_x is nan; it must be a number of pixels above"),
        (lambda f: f.update(fl_y=-90), "fl_y is -90; it must be a number of pixels above 0"),
        (lambda f: f.update(fl_x="80"), "fl_x is '80'; it must be a number of pixels above 0"),
        (lambda f: f.update(fl_x=True), "fl_x is True; it must be a number of pixels above 0"),
        (lambda f: f.update(cx=float("inf")), "cx is inf; it must be a number of pixels"),
        (lambda f: f.update(cy="middle"), "cy is 'middle'; it must be a number of pixels"),
        (lambda f: f.update(w=0), "w is 0; it must be a number above 0"),
        (lambda f: f.update(h=float("inf")), "h is inf; it must be a number above 0"),
        (lambda f: f.update(w=None), "w is None; it must be a number above 0"),
        (lambda f: f.update(fl_x=None), "fl_x is None; it must be .* or camera_angle_x be given"),
        (
            lambda f: f.update(fl_x=None, camera_angle_x=3.2),
            "camera_angle_x is 3.2; it must be radians between 0 and pi",
        ),
        (lambda f: f.update(camera_model="OPENCV_FISHEYE"), "'OPENCV_FISHEYE'; it can be PINHOLE"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_that_says_where(mend, message):
    given = transforms()
    mend(given["frames"][1])
    one, wrong, other = read(given)
    camera_of(one, "there"), camera_of(other, "there")
    with pytest.raises(BadRecord, match=f"^there: .*{message}") as fault:
        camera_of(wrong, "there")
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"frames": []}', '{"frames": {}}', '{"frames": [7]}', "null", "\xff"]
)
def test_a_file_without_frames_is_refused(text):
    with pytest.raises(BadRecord, match="^there: expected frames, each with file_path") as fault:
        entries_in(text.encode("latin-1"), "there")
    assert "\n" not in str(fault.value)
