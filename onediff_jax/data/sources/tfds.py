"""Any data set of TFDS that was prepared as ArrayRecord files, read without TensorFlow.

A mapping in the config says where in the data set's features the fields of a record are, such as
{"image": "image", "boxes": "objects/bbox", "names": "objects/label"}; a number in a path chooses
from a sequence, as in "captions/text/0".
"""

import dataclasses
import functools
import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from onediff_jax.data.example import FIELDS
from onediff_jax.data.records import (
    READY,
    NamedImages,
    Source,
    SourceSettings,
    StoredImage,
    StoredImages,
    StoredRecord,
    few_files_at,
    numbers_of_split,
)
from onediff_jax.data.sources.arrayrecord import RecordFiles
from onediff_jax.errors import BadRecord, InputError, one_line
from onediff_jax.ops.cameras import Camera
from onediff_jax.paths import Location
from onediff_jax.settings import setting

ORIENTATION = 0x0112  # the EXIF tag; 1: as stored


@dataclasses.dataclass(frozen=True)
class Tfds(SourceSettings):
    """A data set of TFDS, prepared with file_format="array_record"."""

    path: Location = setting("", "TFDS's data_dir")
    name: str = setting("", "of the data set, such as coco/2017 or mine:1.0.0")
    fields: Mapping[str, str] = setting({}, "field of a record -> feature")
    pictures: Mapping[str, str] = setting({}, "ready view -> feature")
    train: str = setting("train", "TFDS's split, which may be sliced, as train[:90%]")
    held_out: str = setting(
        "", "TFDS's split to validate on; empty: records of `train` are held out"
    )
    validation: int = setting(64, "records held out where there is no such split")

    def records(self, split: str) -> Source:
        """The records of a split."""
        return TfdsRecords(self, split)


class Found(NamedTuple):
    """Where a field is in the features, and what is there."""

    kind: str  # of the field
    parts: tuple[str, ...]
    feature: Any  # tfds.features.FeatureConnector
    several: bool  # a sequence of them
    nested: bool  # inside of a sequence, or chosen from one

    def of(self, example: Mapping[str, Any]) -> Any:
        """The field's value in an example, as TFDS decodes it."""
        value: Any = example
        for part in self.parts:
            value = value[part] if isinstance(value, Mapping) else value[int(part)]
        return value


class TfdsRecords(Source):
    """Records of a TFDS data set."""

    def __init__(self, settings: Tfds, split: str):
        import tensorflow_datasets as tfds

        self._given = (settings, split)
        folder = few_files_at(settings.path, "tfds")
        if not settings.fields.get("image"):
            raise InputError(
                "fields of a data source of kind 'tfds' must say where the image is, such as "
                "dict(image='image', caption='caption/text')."
            )
        try:
            builder = tfds.builder(settings.name, data_dir=folder)
        except Exception as error:  # TFDS raises many kinds
            raise InputError(
                f"{folder} has no data set {settings.name!r} of TFDS: {one_line(error)}"
            ) from None
        mapped = {**settings.fields, **{READY + n: path for n, path in settings.pictures.items()}}
        features = builder.info.features
        self._found = {field: found_at(features, field, path) for field, path in mapped.items()}
        self.fields = frozenset(self._found)

        class Encoded(tfds.decode.SkipDecoding):
            """Leaves images encoded, in sequences too; they are decoded here, when asked for."""

            def decode_batch_example_np(self, images: Any) -> Any:
                return images

        decoders: dict[str, Any] = {}
        for found in self._found.values():
            if found.kind in ("image", "images", "named images"):
                inner = decoders
                for part in found.parts[:-1]:
                    inner = inner.setdefault(part, {})
                inner[found.parts[-1]] = Encoded()
        held_out = split == "validation" and settings.held_out
        name = settings.held_out if held_out else settings.train
        try:
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            self._records = builder.as_data_source(name, deserialize_method=raw)
            files = builder.info.splits[name].file_instructions
        except Exception as error:  # of an unknown split, another format, or nothing prepared
            raise InputError(
                f"{settings.name!r} in {folder} has no split {name!r} that can be read: "
                f"{one_line(error)}; prepare it with file_format='array_record'."
            ) from None
        # Features that no field is made of are not decoded.
        mapped_features = {found.parts[0] for found in self._found.values()}
        self._stored = tfds.features.FeaturesDict({n: features[n] for n in mapped_features})
        self._decoders = decoders
        # TFDS's own reader of files keeps all of them open.
        self._records.data_source = RecordFiles(
            [str(file.filename) for file in files],
            [file.take for file in files],
            [file.skip for file in files],
            "prepare the data set again",
        )
        self._name = f"{folder / settings.name} {name}"
        self._numbers = numbers_of_split(
            "train" if held_out else split,
            len(self._records),
            0 if settings.held_out else settings.validation,
            self._name,
        )

    def __reduce__(self) -> tuple[Any, tuple[Tfds, str]]:
        return Tfds.open, self._given

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> StoredRecord:
        where = self.where(index)
        try:
            example = self._stored.deserialize_example_np(
                self._records[self._numbers.item(index)], decoders=self._decoders
            )
        except (AttributeError, ValueError) as error:  # an image that OpenCV cannot decode
            raise BadRecord(f"{where} cannot be decoded: {one_line(error)}") from None
        stored: dict[str, Any] = {}
        views: dict[str, StoredImage] = {}
        for field, found in self._found.items():
            value = found.of(example)
            if found.kind == "named images":
                views[field.removeprefix(READY)] = stored_image(value, f"{where}: {field}")
            elif found.kind == "image":
                stored[field] = stored_image(value, f"{where}: {field}")
            elif found.kind == "images":
                stored[field] = StoredImages(
                    [stored_image(data, f"{where}: {field}[{i}]") for i, data in enumerate(value)]
                )
            elif found.kind == "cameras":
                stored[field] = tuple(map(Camera, value["intrinsics"], value["camera_to_world"]))
            elif found.kind in _TEXTS:
                texts = value if found.several else [value]
                texts = tuple(text_of(text, found.feature, f"{where}: {field}") for text in texts)
                stored[field] = texts if found.several else texts[0]
            elif field == "boxes":
                image = self._found["image"].of(example)
                stored[field] = functools.partial(
                    _boxes_of, value, found.feature, image, f"{where}: image"
                )
            else:
                stored[field] = measured(value, field)
        return StoredRecord(stored | ({"pictures": NamedImages(views)} if views else {}))

    def where(self, index: int) -> str:
        """The data set, its split and the record's number in it."""
        return f"{self._name}, record {self._numbers.item(index)}"


def found_at(features: Any, field: str, path: str) -> Found:
    """Where a path leads in a data set's features.

    Raises InputError where it leads nowhere, or to something that the field cannot be made of.
    """
    from tensorflow_datasets import features as kinds

    name = "pictures" if field.startswith(READY) else field
    if name not in FIELDS or field == "pictures":
        known = ", ".join(name for name in FIELDS if name != "pictures")
        raise InputError(
            f"fields of a data source of kind 'tfds' has {field!r}; it can have {known}."
        )
    feature, several, nested = features, False, False
    parts = tuple(path.split("/"))
    for part in parts:
        while isinstance(feature, kinds.Sequence):
            feature, several, nested = feature.feature, True, True
        if isinstance(feature, kinds.FeaturesDict) and part in feature:
            feature = feature[part]
        elif several and part.isdigit():
            several = False
        else:
            has = f"; there is {', '.join(feature)}" if hasattr(feature, "keys") else ""
            raise InputError(
                f"fields of a data source of kind 'tfds' has {field}={path!r}, and the features "
                f"have no {part!r} there{has}."
            )
    while isinstance(feature, kinds.Sequence):
        feature, several, nested = feature.feature, True, True
    found = Found(FIELDS[name].kind, parts, feature, several, nested)
    if not fits(found, field):
        wanted = WANTED.get(field) or WANTED[found.kind]
        kind = ("a sequence of " if several else "") + type(feature).__name__
        raise InputError(
            f"fields of a data source of kind 'tfds' has {field}={path!r}, which is {kind}; it "
            f"must be {wanted}."
        )
    return found


_TEXTS = ("text", "texts", "caption", "captions")  # kinds of fields
WANTED = {  # by kind, or of arrays by name
    "image": "an Image outside of sequences",
    "named images": "an Image outside of sequences",
    "images": "a sequence of Image with three channels",
    "text": "a Text or a ClassLabel",
    "caption": "a Text or a ClassLabel, or a sequence of them",
    "texts": "a sequence of Text or ClassLabel",
    "captions": "a sequence of Text or ClassLabel",
    "cameras": "a sequence of intrinsics (3, 3) and camera_to_world (4, 4)",
    "depth": "an Image or Tensor of height x width numbers",
    "instances": "an Image or Tensor of height x width whole numbers",
    "boxes": "a sequence of BBoxFeature with a format",
    "keypoints": "a sequence of Tensor (17, 3)",
}


def fits(found: Found, field: str) -> bool:
    """Whether a field can be made of what was found, as WANTED says."""
    from tensorflow_datasets import features as kinds

    kind, feature, several = found.kind, found.feature, found.several
    is_image, is_text = (isinstance(feature, k) for k in (kinds.Image, kinds.Text))
    if kind in ("image", "named images"):
        return is_image and not found.nested
    if kind == "images":
        return is_image and several and feature.shape[-1] == 3
    if kind in _TEXTS:
        fitting = kind == "caption" or several == kind.endswith("s")
        return fitting and (is_text or isinstance(feature, kinds.ClassLabel))
    if kind == "cameras":
        shapes = {"intrinsics": (3, 3), "camera_to_world": (4, 4)}
        known = several and isinstance(feature, kinds.FeaturesDict)
        return known and all(n in feature and feature[n].shape == s for n, s in shapes.items())
    if field == "boxes":
        return isinstance(feature, kinds.BBoxFeature) and several and bool(feature.bbox_format)
    if not isinstance(feature, (kinds.Tensor, kinds.Image)) or is_text:
        return False
    if field == "keypoints":
        return several and tuple(feature.shape) == (17, 3)
    flat = len(feature.shape) == 2 or (len(feature.shape) == 3 and feature.shape[-1] == 1)
    whole = np.issubdtype(feature.np_dtype, np.integer)
    return flat and not several and (whole or field == "depth")


def stored_image(data: bytes, name: str) -> StoredImage:
    """An image of the bytes that TFDS keeps."""
    return StoredImage(name, lambda: data)


def text_of(value: Any, feature: Any, where: str) -> str:
    """A text, or the name of a label; raises BadRecord for unknown labels and other bytes."""
    try:
        if isinstance(value, (bytes, str)):
            return value.decode() if isinstance(value, bytes) else value
        return feature.int2str(int(value))
    except ValueError as error:
        raise BadRecord(f"{where} is {value!r}: {one_line(error)}") from None


def measured(value: Any, field: str) -> np.ndarray:
    """A map or keypoints as numbers; a depth of 0, which sensors give for nothing, is infinite."""
    if field == "keypoints":
        return np.asarray(value, np.float32).reshape(-1, 17, 3)
    value = value[..., 0] if value.ndim == 3 else value
    if field == "instances":
        return value
    depth = value.astype(np.float32)
    return np.where(depth == 0, np.float32(np.inf), depth)


def _boxes_of(value: Any, feature: Any, image: bytes, where: str) -> Float[np.ndarray, "n 4"]:
    """Boxes of any of TFDS's formats as left, top, right, bottom in pixels of an encoded image.

    Raises BadRecord where EXIF turns the image, since boxes may then count from either corner.
    """
    try:
        with Image.open(io.BytesIO(image)) as opened:
            size, turned = opened.size, opened.getexif().get(ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError) as error:  # of its content: no file is read here
        raise BadRecord(f"{where} cannot be read as an image: {one_line(error)}") from None
    if turned != 1:
        raise BadRecord(
            f"{where} is turned by EXIF (orientation {turned}); its boxes are ambiguous."
        )
    boxes, kind = np.asarray(value, np.float32).reshape(-1, 4), feature.bbox_format.value
    if kind.endswith("YXYX"):
        boxes = boxes[:, [1, 0, 3, 2]]
    if kind == "XYWH":
        boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return boxes * np.array([*size, *size], np.float32) if kind.startswith("REL_") else boxes
