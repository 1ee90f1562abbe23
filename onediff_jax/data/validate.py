"""What can be wrong with a record's content: checked once, when its fields are read.

`FIELDS` says what a field must be; what else a value must fulfil is here.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from onediff_jax.data.example import FIELDS, Field, fields_along
from onediff_jax.errors import BadRecord
from onediff_jax.ops.cameras import Camera

RIGID = 1e-3  # what the axes of a camera may lack in length and at right angles


def refuse_wrong(record: Mapping[str, Any], where: str) -> None:
    """Raises BadRecord, beginning with the record's place, where a field cannot be used as it is.

    Looks at the fields that are there; images and cameras that are read later are left alone.
    """
    for name, field in FIELDS.items():
        if name in record:
            refuse_wrong_field(record, name, field, where)
    for name, image in record.get("pictures", {}).items():
        refuse_other_aspect(image.shape, record["image"].shape, f"pictures.{name}", where)
    for name, refuse in (
        ("depth", refuse_wrong_depth),
        ("instances", refuse_wrong_instances),
        ("boxes", refuse_wrong_boxes),
        ("keypoints", refuse_wrong_keypoints),
    ):
        if name in record:
            refuse(record, where)


def refuse_wrong_field(record: Mapping[str, Any], name: str, field: Field, where: str) -> None:
    """Raises where a field is not of its kind and shape."""
    value = record[name]
    if field.kind in ("text", "caption"):
        refuse_no_text(value, name, field.kind == "caption", where)
    elif field.kind in ("texts", "captions"):
        for i, text in enumerate(value):
            refuse_no_text(text, f"{name}[{i}]", field.kind == "captions", where)
    elif field.kind == "array":
        size: dict[str | int, int] = {}
        if "image" in record:
            size = dict(zip("hw", record["image"].shape, strict=False))
        shape = tuple(size.get(axis, axis) for axis in field.shape)
        axes = zip(value.shape, shape, strict=False)
        fitting = tuple(found if isinstance(axis, str) else axis for found, axis in axes)
        if (fitting, len(shape)) != (value.shape, value.ndim):
            raise BadRecord(f"{where}: {name} has the shape {value.shape}; it must be {shape}.")
        if field.dtype == "integer" and not np.issubdtype(value.dtype, np.integer):
            raise BadRecord(f"{where}: {name} holds {value.dtype}; it must hold whole numbers.")
    elif field.kind == "cameras" and isinstance(value, list | tuple):  # else checked when read
        for i, camera in enumerate(value):
            refuse_wrong_camera(camera, f"{where}: cameras[{i}]")
    if field.shape and field.shape[0] not in ("h", "w", "_"):
        first = next(other for other in fields_along(field.shape[0]) if other in record)
        if len(value) != len(record[first]):
            raise BadRecord(
                f"{where}: {name} holds {len(value)} and {first} {len(record[first])}; they must "
                "be equally many."
            )


def refuse_no_text(text: Any, name: str, caption: bool, where: str) -> None:
    """Raises where a text is none; only captions may be empty, or be several."""
    if caption and isinstance(text, list | tuple) and text:
        for i, one in enumerate(text):
            refuse_no_text(one, f"{name}[{i}]", caption, where)
    elif not isinstance(text, str) or not (text.strip() or caption):
        raise BadRecord(f"{where}: {name} is {text!r}; it must be a text with words.")


def refuse_other_aspect(
    found: tuple[int, ...], expected: tuple[int, ...], name: str, where: str
) -> None:
    """Raises where an image is not another one resized, give or take a rounded pixel."""
    if abs(found[0] * expected[1] - found[1] * expected[0]) > expected[0] + expected[1]:
        raise BadRecord(
            f"{where}: {name} is {found[0]} x {found[1]}; it must have the aspect of its image, "
            f"which is {expected[0]} x {expected[1]} (height x width)."
        )


def refuse_wrong_depth(record: Mapping[str, Any], where: str) -> None:
    """Raises where a depth is not above 0."""
    wrong = record["depth"][~(record["depth"] > 0)]
    if wrong.size:
        raise BadRecord(
            f"{where}: depth is {wrong[0]} in {wrong.size} pixels; it must be above 0, and "
            "infinite where nothing is known."
        )


def refuse_wrong_instances(record: Mapping[str, Any], where: str) -> None:
    """Raises where an instance map has numbers that no name belongs to."""
    instances = record["instances"]
    low, high = int(instances.min()), int(instances.max())
    if low < 0 or high > len(record.get("names", range(high))):
        raise BadRecord(
            f"{where}: instances has numbers from {low} to {high}; the names are "
            f"{len(record.get('names', ()))}, and 0 is background."
        )


def refuse_wrong_boxes(record: Mapping[str, Any], where: str) -> None:
    """Raises where a box is empty or outside of the image."""
    boxes, (height, width) = record["boxes"], record["image"].shape[:2]
    inside = np.concatenate(
        [np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, 2:], (width, height))], axis=1
    )
    for i, (left, top, right, bottom) in enumerate(inside):
        if not (np.isfinite(boxes[i]).all() and left < right and top < bottom):
            raise BadRecord(
                f"{where}: boxes[{i}] is {boxes[i].tolist()}; it must be left < right and top < "
                f"bottom in the image of {width} x {height} (width x height) pixels."
            )


def refuse_wrong_keypoints(record: Mapping[str, Any], where: str) -> None:
    """Raises where keypoints are not COCO's."""
    keypoints = record["keypoints"]
    if not (np.isfinite(keypoints).all() and np.isin(keypoints[..., 2], (0, 1, 2)).all()):
        raise BadRecord(
            f"{where}: keypoints must be finite, each with 0 (absent), 1 (hidden) or 2 (seen) last."
        )


def refuse_wrong_camera(camera: Camera, where: str) -> None:
    """Raises where a camera is not finite, not rigid, mirrored, or has no focal length."""
    K, pose = camera
    if not (np.isfinite(K).all() and np.isfinite(pose).all()):
        raise BadRecord(f"{where}: the camera has numbers that are not finite.")
    if not (K[0, 0] > 0 and K[1, 1] > 0):
        raise BadRecord(
            f"{where}: focal lengths are {K[0, 0]:g} and {K[1, 1]:g}; they must be above 0."
        )
    axes, determinant = pose[:3, :3], np.linalg.det(pose[:3, :3])
    if determinant < -RIGID:
        raise BadRecord(
            f"{where}: the camera's pose has the determinant {determinant:.3g}; it is left-handed "
            "and must be right-handed."
        )
    if np.abs(axes.T @ axes - np.eye(3)).max() > RIGID:
        lengths = ", ".join(f"{length:.4g}" for length in np.linalg.norm(axes, axis=0))
        raise BadRecord(
            f"{where}: the camera's pose is not a rotation (determinant {determinant:.3g}); its "
            f"axes must have length 1 and right angles; their lengths are {lengths}."
        )
    if np.abs(pose[3] - (0, 0, 0, 1)).max() > RIGID:
        raise BadRecord(
            f"{where}: the last row of the camera's pose is {pose[3]}; it must be 0 0 0 1."
        )
