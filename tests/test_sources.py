import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from onediff_jax.data.sources import SOURCES, Folder, FolderRecords, Scenes, captioned_files
from onediff_jax.errors import InputError


def folder_of(folder: pathlib.Path, count: int = 10) -> list[str]:
    """A folder of pictures, every third in a subfolder; picture i is of colour i."""
    names = [f"deep/er/{i}.png" if i % 3 == 2 else f"{i}.png" for i in range(count)]
    (folder / "deep" / "er").mkdir(parents=True)
    lines = []
    for i, name in enumerate(names):
        Image.new("RGB", (8, 6), (i, 100, 200)).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": f"picture {i} ☀"}))
    write(folder, "\n".join(lines))
    return names


def write(folder: pathlib.Path, listing: str) -> None:
    (folder / "metadata.jsonl").write_text(listing, encoding="utf-8")


def captions(source) -> list[str]:
    return [source.caption(i) for i in range(len(source))]


def refused(folder: pathlib.Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as refusal:
        Folder(str(folder), validation=1).open("train")
    assert "\n" not in str(refusal.value)


def test_kinds_of_sources_have_their_names():
    assert (SOURCES["scenes"], SOURCES["folder"]) == (Scenes, Folder)


def test_a_folder_gives_every_picture_with_its_caption(tmp_path):
    folder_of(tmp_path)
    source = Folder(str(tmp_path), validation=0).open("train")
    assert len(source) == 10 and source.fields == {"image", "caption"}
    for i in range(10):
        record = source[i]
        assert set(record) == source.fields
        assert record["image"].shape == (6, 8, 3) and (record["image"] == (i, 100, 200)).all()
        assert record["caption"] == source.caption(i) == f"picture {i} ☀"


def test_a_caption_is_read_without_its_picture(tmp_path):
    names = folder_of(tmp_path)
    source = Folder(str(tmp_path), validation=0).open("train")
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert captions(source) == [f"picture {i} ☀" for i in range(10)]


@pytest.mark.parametrize("validation", [1, 2, 3, 5, 9])
def test_a_folders_splits_are_disjoint_cover_all_and_are_spread(tmp_path, validation):
    folder_of(tmp_path)
    settings = Folder(str(tmp_path), validation)
    held_out, left = captions(settings.open("validation")), captions(settings.open("train"))
    assert len(held_out) == validation
    assert sorted(held_out + left) == [f"picture {i} ☀" for i in range(10)]
    places = [int(text.split()[1]) for text in held_out]
    assert set(np.diff(places)) <= {10 // validation}
    assert (
        captions(settings.open("validation")) == held_out
        and captions(settings.open("train")) == left
    )


def test_pictures_of_the_splits_belong_to_their_captions(tmp_path):
    folder_of(tmp_path)
    for split in ("train", "validation"):
        for record in Folder(str(tmp_path), 3).open(split):
            assert record["caption"] == f"picture {record['image'][0, 0, 0]} ☀"


def test_empty_lines_are_skipped_captions_may_be_absent_and_other_keys_are_ignored(tmp_path):
    folder_of(tmp_path)
    write(
        tmp_path, '\ufeff{"file_name": "0.png"}\n\n{"file_name": "./1.png", "text": "b", "id": 3}\n'
    )
    assert captioned_files(tmp_path) == [("0.png", ""), ("./1.png", "b")]


def test_a_missing_folder_is_refused(tmp_path):
    refused(tmp_path / "absent", "There is no folder .*/absent; set data.sources' path")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "There is no folder .*/file")


def test_a_folder_without_its_listing_is_refused(tmp_path):
    refused(tmp_path, r"metadata\.jsonl is missing; write a line .*file_name")


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{oops", r"metadata\.jsonl, line 3: expected .*, found '\{oops'"),
        ("17", r"line 3: expected .*, found '17'"),
        ("[1]", r"line 3: expected"),
        ('{"text": "no name"}', r"line 3: expected"),
        ('{"file_name": 3}', r"line 3: file_name and text must be strings"),
        ('{"file_name": "0.png", "text": null}', r"line 3: file_name and text must be strings"),
        ('{"file_name": "gone.png"}', r"line 3: there is no file 'gone.png' in"),
        ('{"file_name": "deep"}', r"line 3: there is no file 'deep' in"),
        ('{"file_name": "../0.png"}', r"line 3: there is no file"),
    ],
)
def test_a_broken_line_is_refused_with_its_number(tmp_path, line, match):
    (tmp_path / "inner").mkdir()
    folder_of(tmp_path / "inner")
    Image.new("RGB", (2, 2)).save(tmp_path / "0.png")  # outside of the folder
    write(tmp_path / "inner", '{"file_name": "0.png"}\n\n' + line + '\n{"file_name": "1.png"}\n')
    refused(tmp_path / "inner", match)


def test_a_listing_in_another_encoding_is_refused_with_its_line(tmp_path):
    folder_of(tmp_path)
    text = '{"file_name": "0.png"}\n{"file_name": "1.png", "text": "für"}\n'
    (tmp_path / "metadata.jsonl").write_bytes(text.encode("latin-1"))
    refused(tmp_path, "line 2: expected")


def test_a_listing_of_nothing_is_refused(tmp_path):
    write(tmp_path, "\n \n")
    refused(tmp_path, r"metadata\.jsonl names no pictures")


@pytest.mark.parametrize("validation", [10, 11])
def test_a_folder_that_validation_would_empty_is_refused_with_both_numbers(tmp_path, validation):
    folder_of(tmp_path)
    match = f"has 10 pictures and .* holds out {validation}; set it below 10"
    with pytest.raises(InputError, match=match):
        Folder(str(tmp_path), validation).open("train")


def test_an_unreadable_picture_is_refused_by_name_when_it_is_read(tmp_path):
    names = folder_of(tmp_path)
    (tmp_path / names[5]).write_bytes(b"no picture")
    # Not by `open`: the type check of what it returns reads a record at random.
    source = FolderRecords(Folder(str(tmp_path), validation=0), "train")
    assert source[4]["caption"] == "picture 4 ☀"
    with pytest.raises(InputError, match=r"deep/er/5\.png cannot be read as a picture") as refusal:
        source[5]
    assert "\n" not in str(refusal.value)
    (tmp_path / names[5]).unlink()
    with pytest.raises(InputError, match=r"There is no picture .*deep/er/5\.png"):
        source[5]
