"""Cameras of a nerfstudio `transforms.json`."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from onediff_jax.errors import InputError
from onediff_jax.ops.cameras import (
    Camera,
    focal_from_angle,
    intrinsics_matrix,
    nearest_rotation,
    opencv_from_opengl,
    pose_matrix,
)

PERSPECTIVE = ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
TOLERANCE = 1e-3  # of a rotation's entries: files round to a few digits


class _Frame:
    """One frame of a file, read field by field; a field it lacks is the file's."""

    def __init__(self, number: int, own: Any, shared: Mapping[str, Any]):
        own = own if isinstance(own, Mapping) else {}
        self.name = f"frames[{number}] ({own.get('file_path', 'no file_path')})"
        self.fields = {**shared, **own}

    def wrong(self, field: str, value: Any, expected: str) -> InputError:
        """The error that names the frame and the field."""
        shown = " ".join(str(value).split())
        return InputError(f"transforms.json, {self.name}: {field} is {shown}; expected {expected}.")

    def number(self, field: str, expected: str, positive: bool = True) -> float | None:
        """A finite number, or None where the field is missing."""
        value = self.fields.get(field)
        if value is None:
            return None
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or (positive and value <= 0):
            raise self.wrong(field, value, expected)
        return float(value)

    def size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """Height and width of the frame's picture."""
        found = []
        for field, given in zip(("h", "w"), size or (None, None), strict=True):
            pixels = self.number(field, "a whole number of pixels") or given
            if pixels is None or pixels != int(pixels):
                raise self.wrong(field, pixels, "a whole number of pixels, in the file or as size")
            found.append(int(pixels))
        return tuple(found)

    def intrinsics(self, size: tuple[int, int]) -> Float[np.ndarray, "3 3"]:
        """K in pixels of a picture of that size."""
        model = self.fields.get("camera_model", "OPENCV")
        if model not in PERSPECTIVE:
            raise self.wrong("camera_model", model, f"one of {', '.join(PERSPECTIVE)}")
        height, width = size
        focal = {}
        for axis, pixels in (("x", width), ("y", height)):
            focal[axis] = self.number(f"fl_{axis}", "a positive number of pixels")
            angle = self.number(f"camera_angle_{axis}", "radians between 0 and pi")
            if angle is not None and angle >= math.pi:
                raise self.wrong(f"camera_angle_{axis}", angle, "radians between 0 and pi")
            if focal[axis] is None and angle is not None:
                focal[axis] = focal_from_angle(angle, pixels)
        if focal["x"] is None:
            raise self.wrong("fl_x", None, "a number of pixels, or camera_angle_x in radians")
        center = [
            self.number(field, "a number of pixels", positive=False)
            for field in ("cx", "cy")
        ]  # fmt: skip
        values = (
            focal["x"],
            focal["x"] if focal["y"] is None else focal["y"],
            width / 2 if center[0] is None else center[0],
            height / 2 if center[1] is None else center[1],
        )
        return intrinsics_matrix(*map(np.float64, values))

    def camera_to_world(self) -> Float[np.ndarray, "4 4"]:
        """The rigid pose with OpenCV axes."""
        field = "transform_matrix"
        value = self.fields.get(field)
        try:
            pose = np.array(value, np.float64)
        except (TypeError, ValueError):
            pose = np.empty(0)
        if pose.shape != (4, 4):
            raise self.wrong(field, value, "4 rows of 4 numbers")
        if not np.isfinite(pose).all():
            raise self.wrong(field, value, "finite numbers")
        if np.abs(pose[3] - [0, 0, 0, 1]).max() > TOLERANCE:
            raise self.wrong(f"{field}[3]", value[3], "0, 0, 0, 1")
        rotation = pose[:3, :3]
        lengths = np.linalg.norm(rotation, axis=0)
        volume = np.linalg.det(rotation / np.maximum(lengths, np.finfo(float).tiny))
        if abs(volume) < TOLERANCE:
            raise self.wrong(field, value, "a rotation, but its columns do not span space")
        if volume < 0:
            raise self.wrong(field, value, "a right-handed rotation, but it mirrors")
        if np.abs(rotation.T @ rotation - np.eye(3)).max() > TOLERANCE:
            shown = ", ".join(f"{length:.4g}" for length in lengths)
            raise self.wrong(
                field, value, f"a rotation: orthogonal columns of length 1, not of {shown}"
            )
        return opencv_from_opengl(pose_matrix(nearest_rotation(rotation), pose[:3, 3]))


def cameras_from_transforms(
    transforms: Mapping[str, Any], size: tuple[int, int] | None = None
) -> tuple[Camera, Int[np.ndarray, "v 2"]]:
    """Cameras (v) of a parsed `transforms.json`, in its order, and the sizes that they are for.

    Poses have OpenCV axes in the file's own world.  Intrinsics are the frame's or else the file's:
    `fl_x` and `fl_y`, or `camera_angle_x` and `camera_angle_y` in radians; one focal length serves
    for both; a missing `cx` or `cy` is the middle.  `h` and `w` may be missing where `size` is
    given.  For pictures of another size, `images_4` say, see `resized_intrinsics`.  Lens
    distortion is not undone.

    Raises InputError that names frame, field, value and what was expected: for numbers that are
    none, poses that are not rigid and right-handed, and camera models that are not a pinhole's.
    """
    frames = transforms.get("frames")
    if not isinstance(frames, list) or not frames:
        raise InputError(f"transforms.json: frames is {frames!r}; expected a list of frames.")
    read = [_Frame(number, own, transforms) for number, own in enumerate(frames)]
    sizes = [frame.size(size) for frame in read]
    K = [frame.intrinsics(s) for frame, s in zip(read, sizes, strict=True)]
    poses = [frame.camera_to_world() for frame in read]
    return Camera(np.stack(K), np.stack(poses)), np.array(sizes)
