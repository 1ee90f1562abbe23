"""A small TFDS data set with a feature of every kind that can be mapped to a record's fields."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

H, W = 40, 60
NAMES = ["cat", "dining table", "dog"]
F = tfds.features
FIELDS = {
    "image": "picture",
    "caption": "captions/text/1",
    "names": "objects/label",
    "colors": "objects/color",
    "boxes": "objects/bbox",
    "depth": "maps/depth",
    "instances": "maps/instances",
    "keypoints": "people",
    "item": "kind",
    "references": "others",
    "frames": "frames",
    "cameras": "cameras",
}
FEATURES = {
    "picture": F.Image(shape=(None, None, 3), encoding_format="png"),
    "hed": F.Image(shape=(None, None, 1), encoding_format="png"),
    "captions": F.Sequence({"text": F.Text(), "id": F.Scalar(np.int64)}),
    "objects": F.Sequence(
        {
            "label": F.ClassLabel(names=NAMES),
            "color": F.Text(),
            "bbox": F.BBoxFeature(),
            "xywh": F.BBoxFeature(bbox_format="XYWH"),
        }
    ),
    "maps": {
        "depth": F.Tensor(shape=(H, W, 1), dtype=np.float32),
        "instances": F.Image(shape=(H, W, 1), dtype=np.uint16, encoding_format="png"),
    },
    "people": F.Sequence(F.Tensor(shape=(17, 3), dtype=np.float32)),
    "kind": F.ClassLabel(names=NAMES),
    "others": F.Sequence(F.Image(shape=(4, 6, 3), encoding_format="png")),
    "frames": F.Sequence(F.Image(shape=(4, 6, 3), encoding_format="png")),
    "cameras": F.Sequence(
        {
            "intrinsics": F.Tensor(shape=(3, 3), dtype=np.float32),
            "camera_to_world": F.Tensor(shape=(4, 4), dtype=np.float32),
        }
    ),
}


def png(image: np.ndarray, orientation: int = 1) -> io.BytesIO:
    """An image in a file, since TFDS needs TensorFlow to encode an array."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(file, "png", exif=exif)
    file.seek(0)
    return file


def pose(number: int) -> np.ndarray:
    """A camera at (number, number, number), along the axes of the world."""
    matrix = np.eye(4, dtype=np.float32)
    matrix[:3, 3] = number
    return matrix


def example(number: int) -> dict:
    depth = np.full((H, W, 1), 2 + number, np.float32)
    depth[0, 0] = 0
    instances = np.zeros((H, W, 1), np.uint16)
    instances[4:20, 6:30] = 2
    image = np.full((H, W, 3), number, np.uint8)
    objects = [
        {"label": 2, "color": "röd", "bbox": F.BBox(0.25, 0.1, 0.5, 0.9), "xywh": None},
        {"label": "cat", "color": "blue", "bbox": F.BBox(0.0, 0.0, 1.0, 1.0), "xywh": None},
    ]
    for entry in objects:
        entry["xywh"] = np.array([6, 10, 30, 20], np.float32)
    return {
        "picture": png(image, 6 if number == 9 else 1),
        "hed": png(np.full((H, W), 100 + number, np.uint8)),
        "captions": [{"text": f"{t} {number} ☀", "id": 1} for t in ("first", "second")],
        "objects": objects,
        "maps": {"depth": depth, "instances": png(instances[..., 0])},
        "people": [np.full((17, 3), 2, np.float32)] * (number % 3),
        "kind": "dining table",
        "others": [png(np.full((4, 6, 3), 200 + i, np.uint8)) for i in range(2)],
        "frames": [png(np.full((4, 6, 3), i, np.uint8)) for i in range(3)],
        "cameras": [
            {"intrinsics": np.float32(i + np.eye(3)), "camera_to_world": pose(i)} for i in range(3)
        ],
    }


class Small(tfds.core.GeneratorBasedBuilder):
    """Ten records of everything that can be mapped."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # nothing is downloaded

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=F.FeaturesDict(FEATURES), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(10), "test": self._generate_examples(4)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, example(i)
