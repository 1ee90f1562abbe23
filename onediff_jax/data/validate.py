"""What can be wrong with a record's content, told from its fields alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from onediff_jax.errors import BadRecord
from onediff_jax.ops.cameras import Camera

RIGID = 1e-3  # what the axes of a camera may lack in length and at right angles
SEVERAL = {  # fields of equal length
    "names": ("colors", "places", "boxes"),
    "references": ("reference_captions",),
    "item_references": ("item_captions",),
    "frames": ("cameras",),
}


def refuse_wrong(record: Mapping[str, Any], where: str) -> None:
    """Raises Fault, beginning with the record's place, where its fields cannot be used as they are.

    Looks at the fields that are there; images that are read later are left alone.
    """
    for name in ("caption", "instruction", "item"):
        if name in record:
            refuse_no_text(record[name], name, where)
    for name in ("names", "colors", "places", "reference_captions", "item_captions"):
        for i, text in enumerate(record.get(name, ())):
            refuse_no_text(text, f"{name}[{i}]", where)
    for name, others in SEVERAL.items():
        for other in others:
            if name in record and other in record and len(record[name]) != len(record[other]):
                raise BadRecord(
                    f"{where}: {other} holds {len(record[other])} and {name} "
                    f"{len(record[name])}; they must be equally many."
                )
    for name, image in record.get("pictures", {}).items():
        refuse_other_aspect(image.shape, record["image"].shape, f"pictures.{name}", where)
    for name in ("depth", "instances"):
        if name in record and record[name].shape != record["image"].shape[:2]:
            raise BadRecord(
                f"{where}: {name} has the shape {record[name].shape}; its image is "
                "{} x {} (height x width).".format(*record["image"].shape[:2])
            )
    if "depth" in record and not (record["depth"] > 0).all():
        wrong = record["depth"][~(record["depth"] > 0)]
        raise BadRecord(
            f"{where}: depth is {wrong[0]} in {wrong.size} pixels; it must be above 0, and "
            "infinite where nothing is known."
        )
    if "instances" in record:
        refuse_wrong_instances(record, where)
    if "boxes" in record:
        refuse_wrong_boxes(record, where)
    if "keypoints" in record:
        refuse_wrong_keypoints(record["keypoints"], where)


def refuse_no_text(text: Any, name: str, where: str) -> None:
    """Raises where a text is none; only captions may be empty, or be several."""
    if "caption" in name and isinstance(text, (list, tuple)) and text:
        for i, one in enumerate(text):
            refuse_no_text(one, f"{name}[{i}]", where)
        return
    if not isinstance(text, str) or not (text.strip() or "caption" in name):
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
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise BadRecord(f"{where}: boxes has the shape {boxes.shape}; it must be (n, 4).")
    inside = np.concatenate(
        [np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, 2:], (width, height))], axis=1
    )
    for i, (left, top, right, bottom) in enumerate(inside):
        if not (np.isfinite(boxes[i]).all() and left < right and top < bottom):
            raise BadRecord(
                f"{where}: boxes[{i}] is {boxes[i].tolist()}; it must be left < right and top < "
                f"bottom in the image of {width} x {height} (width x height) pixels."
            )


def refuse_wrong_keypoints(keypoints: np.ndarray, where: str) -> None:
    """Raises where keypoints are not COCO's."""
    if keypoints.ndim != 3 or keypoints.shape[1:] != (17, 3):
        raise BadRecord(
            f"{where}: keypoints has the shape {keypoints.shape}; it must be (n, 17, 3)."
        )
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
