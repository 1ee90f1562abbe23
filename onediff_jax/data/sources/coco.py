"""COCO's annotations: instances, keypoints and captions in JSON files beside a folder of images.

A source uses the files that its settings name; its records are the images that every one of them
says something about.  Crowds are left out: they are regions, not objects.
"""

import array
import dataclasses
import functools
import json
import pathlib
import zlib
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float

from onediff_jax.data.conditions.maps import instances_of, mask_of
from onediff_jax.data.example import Caption, Record
from onediff_jax.data.records import (
    Source,
    SourceSettings,
    StoredImage,
    StoredRecord,
    folder_at,
    numbers_of_split,
)
from onediff_jax.errors import BadRecord, InputError
from onediff_jax.paths import Location
from onediff_jax.settings import setting

MOST = 65_535  # instances of an image, whose map has 16 bits


@dataclasses.dataclass(frozen=True)
class Coco(SourceSettings):
    """Images with annotations in COCO's JSON; those without any are left out."""

    path: Location = setting("", "of the folder of images; other files are looked for from it")
    instances: str = setting("", "JSON of instances: masks, boxes and names")
    keypoints: str = setting("", "JSON of people's 17 keypoints")
    captions: str = setting("", "JSON of captions; every example has one of its image's")
    validation: int = setting(64, "images held out, spread evenly")

    def records(self, split: str) -> Source:
        """The images of a split."""
        return CocoImages(self, split)


class CocoImages(Source):
    """Images and what is said of them.

    Annotations are kept compressed, image by image: those of 118,000 images are 2 GB as objects.
    """

    def __init__(self, settings: Coco, split: str):
        self.folder = folder_at(settings.path, "coco")
        files = {
            kind: file_at(self.folder, getattr(settings, kind))
            for kind in ("instances", "keypoints", "captions")
            if getattr(settings, kind)
        }
        if not files:
            raise InputError(
                f"The data source of kind 'coco' in {self.folder} names no JSON; set its "
                "instances, keypoints or captions."
            )
        said = [annotations_in(file, kind) for kind, file in files.items()]
        common = set.intersection(*(set(annotations) for annotations in said))
        if not common:
            raise InputError(
                f"No image has annotations in all of {', '.join(str(f) for f in files.values())}."
            )
        self._files = " and ".join(file.name for file in files.values())
        self.fields = frozenset({"image"}.union(*(_FIELDS[kind] for kind in files)))
        images = sorted(common)
        numbers = numbers_of_split(
            split, len(images), settings.validation, f"annotated images in {self.folder}"
        )
        self._blob, self._ends = bytearray(), array.array("Q", [0])
        for i in numbers:
            parts: dict[str, Any] = {"id": images[i]}
            for annotations in said:
                parts |= annotations.pop(images[i])
            self._blob += zlib.compress(json.dumps(parts).encode(), 1)
            self._ends.append(len(self._blob))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _image(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        return json.loads(zlib.decompress(self._blob[self._ends[index] : self._ends[index + 1]]))

    def __getitem__(self, index: int) -> Record:
        image, where = self._image(index), self.where(index)
        file = self.folder / image["file_name"]
        stored: dict[str, Any] = {"image": StoredImage(f"{where}: {file}", file.read_bytes)}
        if "instances" in image:
            annotations, size = image["instances"], (image["height"], image["width"])
            stored["names"] = tuple(a["name"] for a in annotations)
            stored["boxes"] = functools.partial(_boxes_of, annotations, where)
            stored["instances"] = functools.partial(map_of, annotations, size, where)
        if "keypoints" in image:
            stored["keypoints"] = functools.partial(keypoints_of, image["keypoints"], where)
        if "captions" in image:
            stored["caption"] = _captions_of(image)
        return StoredRecord(stored)

    def read(self, index: int, fields: Iterable[str]) -> Record:
        """Some fields of a record; raises BadRecord also where the image has another size."""
        record, image = super().read(index, fields), self._image(index)
        if "image" in record and record["image"].shape[:2] != (image["height"], image["width"]):
            found = "{} x {}".format(*record["image"].shape[:2])
            raise BadRecord(
                f"{self.where(index)}: the image is {found} (height x width); its annotations are "
                f"for {image['height']} x {image['width']}."
            )
        return record

    def caption(self, index: int) -> Caption:
        """The captions of an image, which is not opened."""
        image = self._image(index)
        return _captions_of(image) if "captions" in image else ""

    def where(self, index: int) -> str:
        """The image's number in the files."""
        return f"{self.folder}, image {self._image(index)['id']} of {self._files}"


_FIELDS = {
    "instances": {"instances", "names", "boxes"},
    "keypoints": {"keypoints"},
    "captions": {"caption"},
}
NEEDED = {  # of an annotation
    "instances": ("segmentation", "bbox", "category_id"),
    "keypoints": ("keypoints",),
    "captions": ("caption",),
}


def file_at(folder: pathlib.Path, name: str) -> pathlib.Path:
    """A file named in the settings, from the folder of images where it is relative."""
    file = folder / pathlib.Path(name).expanduser()
    if not file.is_file():
        raise InputError(f"There is no file {file}; the data source of kind 'coco' names {name!r}.")
    return file


def annotations_in(file: pathlib.Path, kind: str) -> dict[int, dict[str, Any]]:
    """What a file says of each image that it says something of, by the image's number.

    Crowds and people without a keypoint are left out.  Raises InputError where the file is not
    COCO's, with the number of the annotation.
    """
    try:
        content = json.loads(file.read_bytes())
        images = {image["id"]: image for image in content["images"]}
        names = {c["id"]: c["name"] for c in content.get("categories", ())}
        annotations = content["annotations"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file}: expected COCO's images and annotations, found {type(error).__name__} {error}."
        ) from None
    of_image = defaultdict(list)
    for annotation in annotations:
        try:
            if annotation.get("iscrowd") or (kind == "keypoints" and not annotation["keypoints"]):
                continue
            kept = {name: annotation[name] for name in NEEDED[kind]}
            if kind == "keypoints" and not any(kept["keypoints"][2::3]):
                continue
            if kind == "instances":
                kept["name"] = names[kept.pop("category_id")]
            if annotation["image_id"] not in images:
                raise KeyError("image_id", annotation["image_id"])
        except (KeyError, TypeError, AttributeError) as error:
            number = annotation.get("id") if isinstance(annotation, dict) else annotation
            raise InputError(
                f"{file}, annotation {number}: expected {', '.join(NEEDED[kind])} of an image and "
                f"a category in the file; {error} is missing or unknown."
            ) from None
        of_image[annotation["image_id"]].append(kept)
    found = {}
    for number, annotations in of_image.items():
        image = images[number]
        try:
            parts = {name: image[name] for name in ("file_name", "height", "width")}
        except KeyError as error:
            raise InputError(f"{file}, image {number}: {error} is missing.") from None
        found[number] = parts | {kind: annotations}
    return found


def _captions_of(image: dict[str, Any]) -> tuple[str, ...]:
    """All captions of an image."""
    return tuple(annotation["caption"] for annotation in image["captions"])


def _boxes_of(annotations: list[dict[str, Any]], where: str) -> Float[np.ndarray, "n 4"]:
    """Boxes as left, top, right, bottom, of COCO's left, top, width, height; raises BadRecord."""
    try:
        boxes = np.array([a["bbox"] for a in annotations], np.float32).reshape(-1, 4)
    except (TypeError, ValueError):
        raise BadRecord(f"{where}: bbox must be 4 numbers, left, top, width and height.") from None
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def map_of(annotations: list[dict[str, Any]], size: tuple[int, int], where: str) -> np.ndarray:
    """The numbers of the instances at every pixel of an image of size (height, width).

    Smaller ones lie over larger ones.  Raises BadRecord.
    """
    if len(annotations) > MOST:
        raise BadRecord(f"{where}: {len(annotations)} instances; a map holds {MOST}.")
    try:
        masks = [mask_of(a["segmentation"], *size) for a in annotations]
    except InputError as error:
        raise BadRecord(f"{where}: {error}") from None
    instances = instances_of(np.stack(masks))
    return instances.astype(np.uint8) if len(annotations) < 256 else instances


def keypoints_of(annotations: list[dict[str, Any]], where: str) -> Float[np.ndarray, "people 17 3"]:
    """People's keypoints, x, y in pixels from the image's edge, and COCO's visibility.

    COCO's are whole numbers of pixels, so half a pixel leads to the pixel's centre (so does
    Detectron2's dataset mapper).  Raises BadRecord.
    """
    try:
        keypoints = np.array([a["keypoints"] for a in annotations], np.float32).reshape(-1, 17, 3)
    except (TypeError, ValueError):
        raise BadRecord(f"{where}: keypoints must be 17 times x, y and visibility.") from None
    present = keypoints[..., 2:] > 0
    return (keypoints + np.array([0.5, 0.5, 0], np.float32)) * present
