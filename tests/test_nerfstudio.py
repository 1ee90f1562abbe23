"""Cameras of a `transforms.json`, and what is refused in one."""

import copy
import json

import numpy as np
import pytest
from numpy.testing import assert_allclose
from rigs import random_pose

from onediff_jax.data.nerfstudio import cameras_from_transforms
from onediff_jax.errors import InputError
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


def transforms(count=3, shared=SHARED):
    poses = random_pose(np.random.default_rng(3), count)
    frames = [
        {"file_path": f"images/{i}.png", "transform_matrix": pose.tolist()}
        for i, pose in enumerate(poses)
    ]
    return json.loads(json.dumps({**shared, "frames": frames}))


def test_poses_are_the_files_with_opencv_axes_in_its_order():
    given = transforms()
    cameras, sizes = cameras_from_transforms(given)
    expected = [frame["transform_matrix"] for frame in given["frames"]]
    assert_allclose(opengl_from_opencv(cameras.camera_to_world), expected, atol=1e-12)
    assert_allclose(cameras.intrinsics[1], [[80, 0, 33.5], [0, 90, 20], [0, 0, 1]])
    assert_allclose(sizes, [[48, 64]] * 3)


def test_a_frames_own_intrinsics_come_before_the_files():
    given = transforms()
    given["frames"][1] |= {"fl_x": 120.0, "cx": 10, "w": 32, "h": 16}
    cameras, sizes = cameras_from_transforms(given)
    assert_allclose(cameras.intrinsics[1], [[120, 0, 10], [0, 90, 20], [0, 0, 1]])
    assert_allclose(cameras.intrinsics[2], [[80, 0, 33.5], [0, 90, 20], [0, 0, 1]])
    assert_allclose(sizes, [[48, 64], [16, 32], [48, 64]])


def test_what_a_file_leaves_out_has_the_usual_meaning():
    """Blender's files have an angle across and no size."""
    cameras, sizes = cameras_from_transforms(
        transforms(shared={"camera_angle_x": np.pi / 2}), size=(48, 64)
    )
    assert_allclose(cameras.intrinsics[0], [[32, 0, 32], [0, 32, 24], [0, 0, 1]])
    assert_allclose(sizes[0], [48, 64])
    both = {"camera_angle_x": np.pi / 2, "camera_angle_y": 2 * np.arctan(0.5), "w": 60, "h": 40}
    cameras, _ = cameras_from_transforms(transforms(shared=both))
    assert_allclose(cameras.intrinsics[0], [[30, 0, 30], [0, 40, 20], [0, 0, 1]])


def test_rotations_are_made_exact_where_a_file_has_few_digits():
    given = transforms()
    rounded = [np.round(frame["transform_matrix"], 4).tolist() for frame in given["frames"]]
    for frame, pose in zip(given["frames"], rounded, strict=True):
        frame["transform_matrix"] = pose
    cameras, _ = cameras_from_transforms(given)
    squares = np.swapaxes(cameras.rotation, -1, -2) @ cameras.rotation
    assert_allclose(squares, np.broadcast_to(np.eye(3), (3, 3, 3)), atol=1e-12)
    assert_allclose(opengl_from_opencv(cameras.camera_to_world), rounded, atol=2e-4)


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


FRAME = r"transforms.json, frames\[1\] \(images/1.png\): "


@pytest.mark.parametrize(
    ("mend", "message"),
    [
        (lambda f: f.pop("transform_matrix"), "transform_matrix is None; expected 4 rows"),
        (lambda f: f.update(transform_matrix=[[1], [2, 3]]), r"\[\[1\], \[2, 3\]\]; expected 4"),
        (lambda f: f.update(transform_matrix=np.eye(3).tolist()), "expected 4 rows of 4 numbers"),
        (entry(0, 0, "one"), "transform_matrix is .*one.*; expected 4 rows of 4 numbers"),
        (entry(0, 0, float("nan")), "transform_matrix is .*nan.*; expected finite numbers"),
        (entry(2, 3, float("inf")), "transform_matrix is .*inf.*; expected finite numbers"),
        (entry(3, 3, 2), r"transform_matrix\[3\] is .*2\].*; expected 0, 0, 0, 1"),
        (turned(np.diag([1, 1, -1])), "expected a right-handed rotation, but it mirrors"),
        (turned(2 * np.eye(3)), "a rotation: orthogonal columns of length 1, not of 2, 2, 2"),
        (turned([[1, 0.1, 0], [0, 1, 0], [0, 0, 1]]), "expected a rotation: orthogonal columns"),
        (turned(np.diag([1, 1, 0])), "a rotation, but its columns do not span space"),
        (turned([[1, 1, 0], [0, 0, 0], [0, 0, 1]]), "its columns do not span space"),
        (lambda f: f.update(fl_x=float("nan")), "fl_x is nan; expected a positive number"),
        (lambda f: f.update(fl_y=-90), "fl_y is -90; expected a positive number of pixels"),
        (lambda f: f.update(fl_x="80"), "fl_x is 80; expected a positive number"),
        (lambda f: f.update(cx=float("inf")), "cx is inf; expected a number of pixels"),
        (lambda f: f.update(w=0), "w is 0; expected a whole number of pixels"),
        (lambda f: f.update(h=47.5), "h is 47.5; expected a whole number of pixels"),
        (lambda f: f.update(w=None), "w is None; expected .* in the file or as size"),
        (lambda f: f.update(fl_x=None), "fl_x is None; expected .* or camera_angle_x"),
        (lambda f: f.update(camera_angle_x=3.2), "camera_angle_x is 3.2; expected radians"),
        (lambda f: f.update(camera_model="OPENCV_FISHEYE"), "OPENCV_FISHEYE; expected .*PINHOLE"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line_that_says_where(mend, message):
    given = transforms()
    mend(given["frames"][1])
    with pytest.raises(InputError, match=FRAME + ".*" + message) as error:
        cameras_from_transforms(copy.deepcopy(given))
    assert "\n" not in str(error.value)


def test_a_file_without_frames_is_refused():
    for frames in (None, [], {}):
        with pytest.raises(InputError, match="frames is .*; expected a list"):
            cameras_from_transforms({"frames": frames})
    with pytest.raises(InputError, match=r"frames\[0\] \(no file_path\): transform_matrix is None"):
        cameras_from_transforms({**SHARED, "frames": [7]})
