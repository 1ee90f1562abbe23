import json
import pathlib
import pickle

import numpy as np
import pytest
from PIL import Image

from onediff_jax.data.sources.identities import Identities
from onediff_jax.errors import BadRecord, InputError

COUNTS = {"ann": 3, "bob": 1, "cleo": 5, "dan_lee": 2}


def folder_of(folder: pathlib.Path, **columns) -> None:
    """Images of subjects; image j of subject i is (i, j, 0); columns are made of (i, j)."""
    lines = []
    for i, (name, count) in enumerate(COUNTS.items()):
        (folder / name).mkdir(parents=True)
        for j in range(count):
            Image.new("RGB", (8, 6), (i, j, 0)).save(folder / name / f"{j}.png")
            line = {column: value(i, j) for column, value in columns.items()}
            lines.append({"file_name": f"{name}/{j}.png"} | line)
    (folder / ".cache").mkdir()
    (folder / "ann" / "notes.txt").write_text("")
    if columns:
        write(folder, lines)


def write(folder, lines):
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))


def only(folder, **settings):
    return Identities(str(folder), **({"validation": 0} | settings)).open("train")


def shown(image) -> tuple[int, int]:
    return tuple(int(value) for value in image[0, 0, :2])


def test_every_image_has_all_others_of_its_subject_and_none_else(tmp_path):
    folder_of(tmp_path)
    source = only(tmp_path)
    assert source.fields == {"image", "references"} and source.least == {"references": 1}
    found = []
    for i in range(len(source)):
        record = source.read(i, source.fields)
        subject, image = shown(record["image"])
        others = {(subject, j) for j in range(list(COUNTS.values())[subject])} - {(subject, image)}
        assert {shown(p) for p in record["references"]} == others
        assert len(record["references"]) == len(others)
        found.append((subject, image))
    assert found == [(i, j) for i, n in enumerate(COUNTS.values()) for j in range(n) if n > 1]


@pytest.mark.parametrize(("least", "expected"), [(2, {0, 2, 3}), (3, {0, 2}), (4, {2})])
def test_subjects_with_fewer_images_are_left_out(tmp_path, least, expected):
    folder_of(tmp_path)
    source = only(tmp_path, least=least)
    assert source.least == {"references": least - 1}
    records = [source[i] for i in range(len(source))]
    assert {shown(record["image"])[0] for record in records} == expected
    assert all(len(record["references"]) >= least - 1 for record in records)


def test_captions_come_from_the_listing_and_stay_with_their_images(tmp_path):
    folder_of(tmp_path, text=lambda i, j: f"{i} {j}")
    source = only(tmp_path)
    assert source.fields == {"image", "references", "caption", "reference_captions"}
    for i in range(len(source)):
        record = source.read(i, source.fields)
        assert record["caption"] == source.caption(i) == "{} {}".format(*shown(record["image"]))
        texts = ["{} {}".format(*shown(image)) for image in record["references"]]
        assert list(record["reference_captions"]) == texts


def test_an_image_may_have_several_captions(tmp_path):
    folder_of(tmp_path, text=lambda i, j: [f"{i} {j}", "a person"] if j else "alone")
    source = only(tmp_path)
    for i in range(len(source)):
        record = source.read(i, source.fields)
        for image, caption in zip(
            (record["image"], *record["references"]),
            (record["caption"], *record["reference_captions"]),
            strict=True,
        ):
            subject, number = shown(image)
            assert caption == ([f"{subject} {number}", "a person"] if number else "alone")
        assert source.caption(i) == record["caption"]


def test_things_have_names(tmp_path):
    folder_of(tmp_path)
    source = only(tmp_path, subjects="thing")
    assert source.fields == {"image", "item", "item_references"}
    assert source.least == {"item_references": 1}
    names = [source.read(i, source.fields)["item"] for i in range(len(source))]
    assert names == ["ann"] * 3 + ["cleo"] * 5 + ["dan lee"] * 2


def test_things_may_be_named_in_the_listing(tmp_path):
    folder_of(tmp_path, text=lambda i, j: "", item=lambda i, j: f"vase {i}")
    source = only(tmp_path, subjects="thing")
    assert source.fields == {"image", "item", "item_references", "caption", "item_captions"}
    assert [source[i]["item"] for i in (0, 9)] == ["vase 0", "vase 3"]


def test_subjects_are_held_out_whole(tmp_path):
    folder_of(tmp_path)
    parts = [Identities(str(tmp_path), validation=1).open(s) for s in ("train", "validation")]
    subjects = [{shown(s[i]["image"])[0] for i in range(len(s))} for s in parts]
    assert sorted(map(len, subjects)) == [1, 2] and not subjects[0] & subjects[1]


def test_a_source_travels_to_workers(tmp_path):
    for inner, columns in (("a", {}), ("b", {"text": lambda i, j: f"{i} {j}"})):
        folder_of(tmp_path / inner, **columns)
        source = only(tmp_path / inner)
        copy = pickle.loads(pickle.dumps(source))
        assert (copy.fields, len(copy)) == (source.fields, len(source))
        for i in range(len(copy)):
            np.testing.assert_array_equal(copy[i]["image"], source[i]["image"])
            assert copy.where(i) == source.where(i) and copy.caption(i) == source.caption(i)


def test_a_broken_image_is_a_fault_that_names_it(tmp_path):
    folder_of(tmp_path)
    (tmp_path / "ann" / "1.png").write_bytes(b"x")
    source = only(tmp_path)
    with pytest.raises(BadRecord, match=r"ann/1\.png cannot be read as an image"):
        source.read(1, ["image"])
    with pytest.raises(BadRecord, match=r"ann/1\.png cannot be read as an image"):
        list(source.read(0, ["references"])["references"])
    (tmp_path / "ann" / "1.png").unlink()
    with pytest.raises(FileNotFoundError):
        source.read(1, ["image"])


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ({"file_name": "ann/0.png"}, "line 2 and .*line 1 do not both have 'text'"),
        ({"file_name": "0.png", "text": ""}, "line 2: expected file_name as 'SUBJECT/PICTURE'"),
        ({"file_name": "ann/0.png", "text": 3}, "line 2: expected file_name"),
        ({"file_name": "ann/9.png", "text": ""}, "line 2: there is no file 'ann/9.png'"),
    ],
)
def test_a_wrong_listing_is_refused_with_its_line(tmp_path, line, match):
    folder_of(tmp_path, text=lambda i, j: "")
    write(tmp_path, [{"file_name": "cleo/0.png", "text": "a"}, line])
    with pytest.raises(InputError, match=match) as refusal:
        only(tmp_path)
    assert "\n" not in str(refusal.value)


def test_impossible_settings_are_refused(tmp_path):
    with pytest.raises(InputError, match="subjects is 'people'"):
        Identities(subjects="people")
    with pytest.raises(InputError, match="least is 1"):
        Identities(least=1)
    with pytest.raises(InputError, match="None of the 0 subjects .* has 2 images"):
        only(tmp_path)
