"""Scenes as a TFDS data set: built once, the same in every process and release."""

import concurrent.futures
import hashlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from numpy.testing import assert_array_equal
from PIL import Image

from onediff_jax.data.scenes import build


def digest(records):
    """A hash of all that is stored of scenes, whatever the features are called."""
    found = hashlib.sha256()
    for record in records:
        first, *others = record["frames"]
        normals, instances, edited = (record[n] for n in ("normals", "instances", "edited"))
        for image in (first, *others, normals, instances, edited):
            found.update(np.asarray(Image.open(image)).tobytes())
        for name in ("depth", "keypoints"):
            found.update(np.asarray(record[name], np.float32).tobytes())
        for name in ("intrinsics", "camera_to_world"):
            found.update(np.stack([camera[name] for camera in record["cameras"]]).tobytes())
        for name in ("caption", "long_caption", "instruction", "item"):
            found.update(record[name].encode())
        for item in record["objects"]:
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
    assert digest(build.records("full", 0, "train", 32, 3, indices)) == expected


SETTINGS = {"content": "basic", "size": 24, "train": 2, "validation": 1, "seed": 3, "views": 1}


def images_of(folder, name):
    source = tfds.builder(name, data_dir=folder).as_data_source(split="train")
    return [record["image"] for record in source]


def test_chunks_make_no_difference():
    [record] = build.records("full", 2, "train", 48, 3, range(6, 7))
    _, again = build.records("full", 2, "train", 48, 3, range(5, 7))
    assert record["image"].getvalue() == again["image"].getvalue()
    assert record["long_caption"] == again["long_caption"]


def test_other_processes_make_the_same_scenes_in_the_same_order(tmp_path, monkeypatch):
    pools = []

    class Pool(concurrent.futures.ProcessPoolExecutor):
        def __init__(self, *arguments):
            pools.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Pool)
    settings = SETTINGS | {"train": 8, "validation": 4}
    alone = images_of(tmp_path / "a", build.build(tmp_path / "a", **settings))
    monkeypatch.setattr(build, "SCENES_ALONE", 4)
    assert not pools
    together = images_of(tmp_path / "b", build.build(tmp_path / "b", **settings))
    assert len(pools) == 1  # the one chunk of validation is made here
    assert_array_equal(alone, together)


def test_a_set_that_is_there_is_not_built_again_and_other_settings_are_another(
    tmp_path, monkeypatch
):
    name = build.build(tmp_path, **SETTINGS)
    with monkeypatch.context() as patched:
        patched.setattr(build, "records", lambda *key: pytest.fail("drawn again"))
        assert build.build(tmp_path, **SETTINGS) == name
    other = build.build(tmp_path, **SETTINGS | {"seed": 4})
    assert other != name
    assert (images_of(tmp_path, other)[0] != images_of(tmp_path, name)[0]).any()
    assert "tensorflow" not in sys.modules


def test_an_interrupted_build_is_not_taken_for_complete(tmp_path, monkeypatch):
    def breaks(*key):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(build, "records", breaks)
        with pytest.raises(KeyboardInterrupt):
            build.build(tmp_path, **SETTINGS)
    assert not list(tmp_path.rglob("dataset_info.json"))
    # A killed process cannot tidy up; what it leaves must not be mistaken either.
    version, config = build.SceneBuilder.VERSION, build.ScenesConfig(**SETTINGS).name
    left = tmp_path / "scenes" / config / f"{version}.incompleteABCDEF_{config}"
    left.mkdir(parents=True, exist_ok=True)
    (left / "scenes-train.array_record-00000-of-00001").write_bytes(b"half")
    assert len(images_of(tmp_path, build.build(tmp_path, **SETTINGS))) == 2


def test_of_two_processes_that_build_at_once_both_get_the_set(tmp_path, monkeypatch):
    records, faster = build.records, []

    def overtaken(*key):
        if not faster:
            faster.append(None)
            faster.append(build.build(tmp_path, **SETTINGS))
        return records(*key)

    monkeypatch.setattr(build, "records", overtaken)
    slower = build.build(tmp_path, **SETTINGS)
    assert slower == faster[1] and len(images_of(tmp_path, slower)) == 2


def test_what_loader_workers_import_does_not_import_jax_or_tensorflow():
    code = (
        "import sys, onediff_jax.data.scenes.build, onediff_jax.data.scenes.source;"
        "print([m for m in ('jax', 'tensorflow') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
