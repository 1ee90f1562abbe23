"""Cameras of a nerfstudio `transforms.json`."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from onediff_jax.data.validate import refuse_wrong_camera
from onediff_jax.errors import BadRecord
from onediff_jax.ops.cameras import (
    Camera,
    focal_from_angle,
    intrinsics_matrix,
    nearest_rotation,
    opencv_from_opengl,
    pose_matrix,
)

PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")
IN_PIXELS = ("fl_x", "fl_y", "cx", "cy")


def entries_in(data: bytes, where: str) -> list[dict[str, Any]]:
    """The frames of a file's text, in its order; a field that a frame lacks is the file's.

    Raises BadRecord where there are none.
    """
    try:
        shared = json.loads(data)
        entries = [shared | own for own in shared.pop("frames")]
        if not entries:
            raise ValueError("no frames")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadRecord(
            f"{where}: expected frames, each with file_path and transform_matrix; found "
            f"{type(error).__name__} {error}."
        ) from None
    return entries


def camera_of(
    entry: Mapping[str, Any], where: str, image: tuple[int, int] | None = None
) -> tuple[Camera, tuple[float, float]]:
    """The camera of a frame, and the size (height, width) in pixels that its intrinsics are for.

    The pose has OpenCV axes in the file's own world, and its rotation is made exact: files round.
    Intrinsics as `intrinsics_of`.  Raises BadRecord that names field, value and what was expected:
    for numbers that are none, cameras that are not a pinhole's, and poses that are not rigid and
    right-handed.
    """
    K, size = intrinsics_of(entry, where, image)
    try:
        pose = np.array(entry["transform_matrix"], np.float64)
    except (KeyError, TypeError, ValueError):
        pose = np.zeros(0)
    if pose.shape == (3, 4):
        pose = np.vstack([pose, [0, 0, 0, 1]])
    if pose.shape != (4, 4):
        raise BadRecord(
            f"{where}: transform_matrix is {entry.get('transform_matrix')!r}; it must be 4 rows of "
            "4 numbers, or 3."
        )
    camera = Camera(K, opencv_from_opengl(pose))
    refuse_wrong_camera(camera, f"{where}: transform_matrix")
    pose = pose_matrix(nearest_rotation(camera.rotation), camera.center)
    return camera._replace(camera_to_world=pose), size


def intrinsics_of(
    entry: Mapping[str, Any], where: str, image: tuple[int, int] | None = None
) -> tuple[Float[np.ndarray, "3 3"], tuple[float, float]]:
    """K of a frame, and the size (height, width) in pixels that it is for.

    Focal lengths are `fl_x` and `fl_y` or follow from `camera_angle_x` and `camera_angle_y` in
    radians; one serves for both.  A missing `cx` or `cy` is the middle.  The size is `h` and `w`;
    where nothing is in pixels, as in Blender's files, it may be that of the `image`.  Raises
    BadRecord that names field, value and what was expected.
    """
    model = entry.get("camera_model", PINHOLES[0])
    if model not in PINHOLES:
        raise BadRecord(f"{where}: camera_model is {model!r}; it can be {', '.join(PINHOLES)}.")
    known: tuple[int | None, int | None] = (None, None)
    if image and all(entry.get(name) is None for name in IN_PIXELS):
        known = image
    height = number(entry, "h", where, known[0])
    width = number(entry, "w", where, known[1])
    focal: dict[str, float] = {}
    for axis, pixels in (("x", width), ("y", height)):
        angle = f"camera_angle_{axis}"
        if entry.get(f"fl_{axis}") is None and entry.get(angle) is not None:
            radians = number(entry, angle, where, None, "radians between 0 and pi", high=math.pi)
            focal[axis] = focal_from_angle(radians, pixels)
        else:
            expected = f"a number of pixels above 0, or {angle} be given"
            focal[axis] = number(entry, f"fl_{axis}", where, focal.get("x"), expected)
    cx = number(entry, "cx", where, width / 2, "a number of pixels", low=-math.inf)
    cy = number(entry, "cy", where, height / 2, "a number of pixels", low=-math.inf)
    K = intrinsics_matrix(*map(np.float64, (focal["x"], focal["y"], cx, cy)))
    return K, (height, width)


def number(
    entry: Mapping[str, Any],
    name: str,
    where: str,
    default: float | int | None = None,
    expected: str = "a number above 0",
    low: float = 0.0,
    high: float = math.inf,
) -> float:
    """A number of an entry between two; raises BadRecord for another, or without a default."""
    value = default if entry.get(name) is None else entry[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
        raise BadRecord(f"{where}: {name} is {value!r}; it must be {expected}.")
    return float(value)
