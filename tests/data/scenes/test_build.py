"""Scenes as a TFDS data set: built once, the same in every process and release."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from onediff_jax.data.scenes import build


def digest(records):
    """A hash of all that is stored of scenes, whatever the features are called."""
    found = hashlib.sha256()
    for record in records:
        for name in ("image", "more_views", "normals", "instances", "edited"):
            found.update(np.asarray(Image.open(record[name])).tobytes())
        for name in ("depth", "keypoints", "intrinsics", "camera_to_world"):
            found.update(np.asarray(record[name], np.float32).tobytes())
        for name in ("caption", "long_caption", "instruction", "item"):
            found.update(record[name].encode())
        for item in record["things"]:
            for name in ("name", "color", "place"):
                found.update(item[name].encode())
            found.update(np.asarray(item["box"], np.float32).tobytes())
    return found.hexdigest()


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        (range(2), "400325ca869fa019392dab06754295bdf7822f2ca5a653e55697f2589b69956d"),
        (range(4, 6), "2ea4984dc36795e52c223c615afa02e75fff7c4b423777dd5c9f1d8e75dd5d69"),
    ],
)
def test_the_full_scenes_are_those_of_earlier_releases(indices, expected):
    assert digest(build.records(0, "train", 32, 3, indices)) == expected
