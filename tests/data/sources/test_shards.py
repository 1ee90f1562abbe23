"""Shards hold every field of a record, and say so when they are incomplete or damaged."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from onediff_jax.commands.make_shards import convert
from onediff_jax.data.example import FIELDS, Record
from onediff_jax.data.images import png
from onediff_jax.data.records import (
    NamedImages,
    Source,
    StoredImage,
    StoredImages,
    StoredRecord,
)
from onediff_jax.data.scenes.source import Scenes
from onediff_jax.data.sources.shards import Shards, record_bytes, stored_record, write_shards
from onediff_jax.data.tasks.fitting import fit_record
from onediff_jax.errors import BadRecord, InputError
from onediff_jax.ops.cameras import Camera


def image(value: int) -> np.ndarray:
    return np.random.default_rng(value).integers(0, 256, (6, 8, 3)).astype(np.uint8)


def record(number: int) -> Record:
    rng = np.random.default_rng(number)
    cameras = [Camera(np.diag([9.0 + i, 9, 1]), np.eye(4)) for i in range(2)]
    return dict(
        image=image(number),
        caption=f"number {number} ☀",
        pictures={"hed": image(number + 1), "pose": image(number + 2)},
        depth=np.where(rng.random((6, 8)) < 0.2, np.inf, 1 + rng.random((6, 8))).astype(np.float32),
        instances=rng.integers(0, 3, (6, 8)).astype(np.uint16),
        boxes=np.array([[0, 0, 3, 4], [1.5, 1, 8, 6]], np.float64),
        names=("cat", "dining table"),
        keypoints=np.ones((3, 17, 3), ">f4"),
        colors=("red", "blue"),
        places=("left", "right"),
        edited=image(number + 3),
        instruction="dye it",
        references=[image(number + 4)],
        reference_captions=["a"],
        item="vase",
        item_references=[image(number + 5), image(number + 6)],
        item_captions=["b", ""],
        frames=[image(number + 7), image(number + 8)],
        cameras=cameras,
    )


class Numbered(Source):
    fields = frozenset(set(record(0)) - {"pictures"} | {"pictures.hed", "pictures.pose"})
    least = {"frames": 2, "references": 1}

    def __init__(self, count):
        self._count = count

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return record(range(self._count)[index])


def written(folder, counts=(7, 3), size=2000):
    folder.mkdir(exist_ok=True)
    sources = dict(zip(("train", "validation"), map(Numbered, counts), strict=True))
    splits = {name: (source, map(record_bytes, source)) for name, source in sources.items()}
    assert write_shards(folder, splits, size) == dict(zip(sources, counts, strict=True))
    return folder


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        field = FIELDS[name]
        if field.kind == "named images":
            assert set(found[name]) == set(value)
            value, actual = list(value.values()), [found[name][view] for view in value]
        else:
            actual = found[name]
        if field.kind == "cameras":
            value, actual = (
                [np.concatenate([*camera], None) for camera in x] for x in (value, actual)
            )
        if "text" in field.kind or "caption" in field.kind:
            assert actual == (tuple(value) if field.shape else value)
        else:
            np.testing.assert_array_equal(np.array(list(actual)), np.array(list(value)))
        if field.kind == "array":
            assert actual.dtype == value.dtype.newbyteorder("=")


def test_every_field_goes_through_shards_and_follows_a_crop():
    for number in range(2):
        given = record(number)
        assert set(given) == set(FIELDS)
        found = stored_record(record_bytes(given), "here")
        assert_equal(found, given)
        small = fit_record(dict(found), 3, 3)
        assert set(small) == set(FIELDS) - {"boxes"}  # the map of instances says where they are
        for name, field in FIELDS.items():
            if "image" in field.kind:
                images = small[name] if field.shape else [small[name]]
                images = small[name].values() if field.kind == "named images" else images
                assert {image.shape for image in images} == {(3, 3, 3)}
            if field.shape[:2] == ("h", "w"):
                assert small[name].shape == (3, 3, *field.shape[2:])
    with pytest.raises(InputError, match="a field 'smell'"):
        record_bytes({"smell": 1})


def test_full_scenes_can_be_made_into_shards(tmp_path):
    scenes = Scenes(
        str(tmp_path / "scenes"), size=16, train=8, validation=4, content="full", views=2,
        groups="figures",
    )  # fmt: skip
    counts, bad = convert(scenes, tmp_path / "shards")
    assert not bad and counts == {"train": 4, "validation": 4}
    source = scenes.open("train")
    found = Shards(str(tmp_path / "shards")).open("train")
    assert found.fields == source.fields
    assert_equal(found.read(1, found.fields), dict(source.read(1, source.fields)))


def test_encoded_images_stay_the_bytes_they_are():
    file = io.BytesIO()
    Image.fromarray(image(0)).save(file, "jpeg", quality=60)
    data = file.getvalue()
    kept = StoredImage("a.jpg", lambda: data)
    found = stored_record(
        record_bytes(
            StoredRecord(
                {
                    "image": kept,
                    "pictures": NamedImages({"hed": kept}),
                    "frames": StoredImages([kept]),
                    "depth": lambda: np.ones((2, 2), np.float32),
                }
            )
        ),
        "there",
    )
    stored = [found.stored["image"], found["pictures"].stored["hed"], found["frames"].stored[0]]
    assert [image.encoded() for image in stored] == [data] * 3
    np.testing.assert_array_equal(found["image"], np.asarray(Image.open(io.BytesIO(data))))
    assert found["depth"].shape == (2, 2)


def test_a_folder_of_shards_gives_back_both_splits_in_order(tmp_path):
    written(tmp_path)
    files = sorted(file.name for file in tmp_path.iterdir())
    assert len(files) > 4 and files[0] == "fields.json"
    for split, count in (("train", 7), ("validation", 3)):
        source = Shards(str(tmp_path)).open(split)
        assert len(source) == count and len(list(source)) == count
        assert source.fields == Numbered.fields and source.least == Numbered.least
        for number in (count - 1, 0, 2, -1):
            expected = record(range(count)[number])
            assert_equal(source[number], expected)
            taken = source.read(number, ["image", "pictures.pose", "depth"])
            np.testing.assert_array_equal(taken["pictures"]["pose"], expected["pictures"]["pose"])
    with pytest.raises(InputError, match="has no split 'test'; it has train, validation"):
        Shards(str(tmp_path)).open("test")


def test_several_captions_stay_several():
    several = {"caption": ("one", "two ☀"), "reference_captions": [["a", "b"]]}
    found = stored_record(record_bytes(record(1) | several), "here")
    assert list(found["caption"]) == ["one", "two ☀"]
    assert found["reference_captions"] == (["a", "b"],)


def test_a_source_travels_to_workers_after_it_was_read(tmp_path):
    source = Shards(str(written(tmp_path))).open("train")
    assert source.caption(6) == "number 6 ☀"
    copy = pickle.loads(pickle.dumps(source))
    assert [copy.caption(i) for i in range(7)] == [f"number {i} ☀" for i in range(7)]


def test_the_manifest_is_written_last_and_a_folder_without_it_is_refused(tmp_path):
    def broken():
        yield record_bytes(record(0))
        assert any(tmp_path.iterdir())
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_shards(tmp_path, {"train": (Numbered(2), broken())})
    with pytest.raises(InputError, match=r"fields\.json is missing, so .* not complete"):
        Shards(str(tmp_path)).open("train")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.update(format=9), "is of format 9 and this program reads 1"),
        (lambda m: m.pop("least"), "lacks 'least'"),
        (lambda m: m["shards"]["train"][0].update(bytes=5), "bytes long; .* says 5 bytes"),
        (lambda m: m["shards"]["train"][0].update(file="gone"), "gone is missing; "),
    ],
)
def test_a_manifest_that_does_not_match_is_refused(tmp_path, change, match):
    file = written(tmp_path) / "fields.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=match) as refusal:
        Shards(str(tmp_path)).open("train")
    assert "\n" not in str(refusal.value)
    file.write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        Shards(str(tmp_path)).open("train")


def test_a_file_that_was_damaged_is_found_by_its_checksum_and_when_it_is_read(tmp_path):
    written(tmp_path, size=10**9)
    source = Shards(str(tmp_path)).open("train")
    assert source.damaged() == []
    file = tmp_path / "train-00000.array_record"
    data = bytearray(file.read_bytes())
    data[2000:2500] = bytes(500)  # records; most of a small file is padding
    file.write_bytes(data)
    source = Shards(str(tmp_path)).open("train")
    assert source.damaged() == [str(file)]
    with pytest.raises(InputError, match="train-00000.*, record [0-9] is damaged") as refusal:
        for i in range(7):
            source[i]
    assert "\n" not in str(refusal.value) and not isinstance(refusal.value, BadRecord)


def test_a_missing_file_is_an_error_of_the_system(tmp_path):
    source = Shards(str(written(tmp_path))).open("train")
    (tmp_path / "train-00001.array_record").unlink()
    with pytest.raises(FileNotFoundError):
        list(source)


def test_wrong_content_is_a_fault_when_it_is_read(tmp_path):
    camera = Camera(np.eye(3), np.diag([1.0, 1, -1, 1]))
    wrong = [
        dict(image=image(0), frames=[image(1)], cameras=[camera]),
        dict(image=image(0), depth=np.zeros((6, 8), np.float32)),
    ]
    records = [record_bytes(w) for w in wrong] + [
        record_bytes(record(0)).replace(png(image(0))[:8], b"x" * 8)
    ]
    write_shards(tmp_path, {"train": (Numbered(3), records)})
    source = Shards(str(tmp_path)).open("train")
    place = r"train-00000\.array_record, record "
    with pytest.raises(BadRecord, match=rf"{place}0: cameras\[0\]: .*left-handed"):
        source.read(0, ["cameras"])
    with pytest.raises(BadRecord, match=f"{place}1: depth is 0.0"):
        source.read(1, ["image", "depth"])
    with pytest.raises(BadRecord, match=f"{place}2: image cannot be read"):
        source.read(2, ["image"])
