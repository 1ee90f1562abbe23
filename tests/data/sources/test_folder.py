import csv
import json
import pathlib
import pickle

import numpy as np
import pytest
from PIL import Image

from onediff_jax.data.sources.folder import VIEWS, Folder
from onediff_jax.data.tasks.table import TASKS
from onediff_jax.errors import BadRecord, InputError


def folder_of(folder: pathlib.Path, count: int = 10) -> list[str]:
    """A folder of images, every third in a subfolder; image i is of color i."""
    names = [f"deep/er/{i}.png" if i % 3 == 2 else f"{i}.png" for i in range(count)]
    (folder / "deep" / "er").mkdir(parents=True)
    for i, name in enumerate(names):
        Image.new("RGB", (8, 6), (i, 100, 200)).save(folder / name)
    write(folder, [{"file_name": n, "text": f"picture {i} ☀"} for i, n in enumerate(names)])
    return names


def write(folder: pathlib.Path, entries: list) -> None:
    lines = [e if isinstance(e, str) else json.dumps(e) for e in entries]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")


def captions(source) -> list[str]:
    return [source.caption(i) for i in range(len(source))]


def refused(folder: pathlib.Path, match: str, **settings) -> None:
    with pytest.raises(InputError, match=match) as refusal:
        Folder(str(folder), **({"validation": 1} | settings)).open("train")
    assert "\n" not in str(refusal.value)
    assert not isinstance(refusal.value, BadRecord)


def test_a_folder_gives_every_image_with_its_caption(tmp_path):
    folder_of(tmp_path)
    source = Folder(str(tmp_path), validation=0).open("train")
    assert len(source) == 10 and source.fields == {"image", "caption"}
    for i in range(10):
        record = source.read(i, source.fields)
        assert set(record) == set(source[i]) == source.fields
        assert record["image"].shape == (6, 8, 3) and (record["image"] == (i, 100, 200)).all()
        assert record["caption"] == source.caption(i) == f"picture {i} ☀"


def test_an_image_may_have_several_captions(tmp_path):
    names = folder_of(tmp_path, 3)
    texts = [["a cat", "a small cat"], "a dog", ["a bird"]]
    pairs = zip(names, texts, strict=True)
    write(tmp_path, [{"file_name": name, "text": text} for name, text in pairs])
    source = Folder(str(tmp_path), validation=0).open("train")
    assert [source.caption(i) for i in range(3)] == texts
    assert [source.read(i, ["caption"])["caption"] for i in range(3)] == texts


def test_columns_are_the_views_and_texts_that_tasks_need(tmp_path):
    folder_of(tmp_path, 2)
    for i in range(2):
        for number, view in enumerate(VIEWS):
            (tmp_path / view).mkdir(exist_ok=True)
            Image.new("RGB", (8, 6), (i, number, 0)).save(tmp_path / view / f"{i}.png")
        Image.new("RGB", (8, 6), (i, 0, 99)).save(tmp_path / f"after{i}.png")
    lines = [
        {"file_name": f"{i}.png", "text": "t", "edited": f"after{i}.png", "instruction": "dye it"}
        | {"item": f"vase {i}", "unknown": i}
        | {view: f"{view}/{i}.png" for view in VIEWS}
        for i in range(2)
    ]
    write(tmp_path, lines)
    source = Folder(str(tmp_path), validation=0).open("train")
    assert source.fields == {"image", "caption", "edited", "instruction", "item"} | {
        f"pictures.{view}" for view in VIEWS
    }
    served = {name for name, task in TASKS.items() if task.takes(source.fields)}
    assert served == set(TASKS) - {"faceid", "subject_driven", "multiview"}
    for i in range(2):
        record = source.read(i, source.fields)
        assert {name: tuple(p[0, 0]) for name, p in record["pictures"].items()} == {
            view: (i, number, 0) for number, view in enumerate(VIEWS)
        }
        assert tuple(record["edited"][3, 3]) == (i, 0, 99)
        assert (record["instruction"], record["item"]) == ("dye it", f"vase {i}")


def test_only_what_is_asked_for_is_read(tmp_path):
    names = folder_of(tmp_path)
    write(tmp_path, [{"file_name": n, "text": "a", "hed": n, "depth": n} for n in names])
    (tmp_path / "bad.png").write_bytes(b"none")
    write(tmp_path, [{"file_name": names[0], "text": "a", "hed": "bad.png", "depth": names[0]}] * 2)
    source = Folder(str(tmp_path), validation=0).open("train")
    assert set(source.read(0, ["image", "pictures.depth"])["pictures"]) == {"depth"}
    with pytest.raises(BadRecord, match=r"metadata\.jsonl, line 2: hed bad\.png cannot be read"):
        source.read(1, ["image", "pictures.hed"])


def test_a_column_on_some_lines_is_refused_with_both_lines_or_left_out(tmp_path):
    names = folder_of(tmp_path)
    lines = [{"file_name": n, "text": "a"} for n in names]
    lines[3]["depth"] = names[0]
    write(tmp_path, lines)
    refused(tmp_path, r"line 1 lacks 'depth', which .*line 4 has; .*source's columns")
    assert Folder(str(tmp_path), ("text",), 0).open("train").fields == {"image", "caption"}
    del lines[3]["depth"], lines[5]["text"]
    write(tmp_path, lines)
    refused(tmp_path, "line 6 lacks 'text', which .*line 1 has")
    assert Folder(str(tmp_path), ("depth",), 0).open("train").fields == {"image"}


def test_columns_that_nobody_reads_are_refused():
    with pytest.raises(InputError, match=r"columns\[0\] is 'dept'; it can be blurred or boxes"):
        Folder(columns=("dept",))


def test_a_condition_of_another_aspect_is_a_fault_and_a_smaller_one_is_not(tmp_path):
    folder_of(tmp_path)
    Image.new("RGB", (4, 3)).save(tmp_path / "small.png")
    Image.new("RGB", (6, 8)).save(tmp_path / "tall.png")
    write(tmp_path, [{"file_name": "0.png", "canny": f"{n}.png"} for n in ("small", "tall")])
    source = Folder(str(tmp_path), validation=0).open("train")
    assert source.read(0, source.fields)["pictures"]["canny"].shape == (3, 4, 3)
    with pytest.raises(BadRecord, match=r"line 2: pictures.canny is 8 x 6; .* 6 x 8") as fault:
        source.read(1, source.fields)
    assert "\n" not in str(fault.value)


def test_a_csv_listing_is_read_alike(tmp_path):
    names = folder_of(tmp_path)
    source = Folder(str(tmp_path), validation=0).open("train")
    expected = captions(source)
    (tmp_path / "metadata.jsonl").unlink()
    texts = [f'a "comma", and\nline {i} ☀' for i in range(10)]
    with (tmp_path / "metadata.csv").open("w", encoding="utf-8-sig", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "text"])
        rows.writerows(zip(names, texts, strict=True))
    source = Folder(str(tmp_path), validation=0).open("train")
    assert captions(source) == texts and len(expected) == 10
    assert (source.read(7, ["image"])["image"] == (7, 100, 200)).all()
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a\n1.png,b,c\n")
    refused(tmp_path, r"metadata\.csv, line 3: 3 cells; the first line names 2")
    (tmp_path / "metadata.csv").write_text("name\n0.png\n")
    refused(tmp_path, r"metadata\.csv, line 2: expected .*file_name")
    write(tmp_path, [{"file_name": "0.png"}])
    refused(tmp_path, r"has both metadata\.jsonl and metadata\.csv; keep one")


def test_a_caption_is_read_without_its_image(tmp_path):
    names = folder_of(tmp_path)
    source = Folder(str(tmp_path), validation=0).open("train")
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert captions(source) == [f"picture {i} ☀" for i in range(10)]


@pytest.mark.parametrize("validation", [1, 2, 3, 5, 9])
def test_a_folders_splits_are_disjoint_cover_all_and_are_spread(tmp_path, validation):
    folder_of(tmp_path)
    settings = Folder(str(tmp_path), validation=validation)
    held_out, left = captions(settings.open("validation")), captions(settings.open("train"))
    assert len(held_out) == validation
    assert sorted(held_out + left) == [f"picture {i} ☀" for i in range(10)]
    places = [int(text.split()[1]) for text in held_out]
    assert set(np.diff(places)) <= {10 // validation}


def test_images_of_the_splits_belong_to_their_captions_and_lines(tmp_path):
    folder_of(tmp_path)
    for split in ("train", "validation"):
        source = Folder(str(tmp_path), validation=3).open(split)
        for index in range(len(source)):
            record = source.read(index, source.fields)
            number = record["image"][0, 0, 0]
            assert record["caption"] == f"picture {number} ☀"
            assert source.where(index) == f"{tmp_path}/metadata.jsonl, line {number + 1}"


def test_empty_lines_are_skipped_and_paths_may_be_written_long(tmp_path):
    folder_of(tmp_path)
    names = ("0.png", "./deep//er/2.png")
    first, second = (json.dumps({"file_name": name, "text": name[0]}) for name in names)
    write(tmp_path, [f"\ufeff{first}", "", second, ""])
    source = Folder(str(tmp_path), validation=0).open("train")
    assert captions(source) == ["0", "."] and source.where(1).endswith("line 3")
    assert source.read(1, ["image"])["image"][0, 0, 0] == 2


def test_a_folder_behind_a_link_counts_as_inside(tmp_path):
    folder_of(tmp_path / "real")
    (tmp_path / "listed").mkdir()
    (tmp_path / "listed" / "pictures").symlink_to(tmp_path / "real")
    write(tmp_path / "listed", [{"file_name": "pictures/4.png"}])
    assert len(Folder(str(tmp_path / "listed"), validation=0).open("train")) == 1


def test_a_source_travels_to_workers(tmp_path):
    folder_of(tmp_path)
    source = Folder(str(tmp_path), validation=2).open("train")
    source.read(0, source.fields)
    copy = pickle.loads(pickle.dumps(source))
    assert captions(copy) == captions(source) and copy.fields == source.fields
    assert (copy.read(3, ["image"])["image"] == source.read(3, ["image"])["image"]).all()


def test_a_missing_folder_is_refused(tmp_path):
    refused(tmp_path / "absent", "There is no folder '.*/absent'; set the path of")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "There is no folder '.*/file'")
    with pytest.raises(InputError, match="There is no folder ''"):
        Folder().open("train")


def test_a_folder_without_its_listing_is_refused(tmp_path):
    refused(tmp_path, r"metadata\.jsonl is missing; write a line .*file_name")


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{oops", r"metadata\.jsonl, line 3: expected .*, found '\{oops'"),
        ("17", r"line 3: expected .*, found 17"),
        ("[1]", r"line 3: expected"),
        ('{"text": "no name"}', r"line 3: expected"),
        ('{"file_name": 3, "text": ""}', r"line 3: expected"),
        ('{"file_name": "0.png", "text": null}', r"line 3: text is None; it must be a string"),
        ('{"file_name": "0.png", "text": []}', r"text is \[\]; it must be .* a list of strings"),
        ('{"file_name": "0.png", "text": ["a", 1]}', r"line 3: text is \['a', 1\]; it must be"),
        ('{"file_name": "gone.png", "text": ""}', r"line 3: there is no file 'gone.png' in"),
        ('{"file_name": "deep", "text": ""}', r"line 3: there is no file 'deep' in"),
        ('{"file_name": "../0.png", "text": ""}', r"line 3: there is no file"),
        ('{"file_name": "deep/../../0.png", "text": ""}', r"line 3: there is no file"),
        ('{"file_name": "no/0.png", "text": ""}', r"line 3: there is no file"),
    ],
)
def test_a_broken_line_is_refused_with_its_number(tmp_path, line, match):
    folder_of(tmp_path / "inner")
    Image.new("RGB", (2, 2)).save(tmp_path / "0.png")  # outside of the folder
    other = '{"file_name": "%s.png", "text": ""}'
    write(tmp_path / "inner", [other % 0, "", line, other % 1])
    refused(tmp_path / "inner", match)


def test_a_missing_condition_is_refused_with_its_line(tmp_path):
    folder_of(tmp_path)
    write(tmp_path, [{"file_name": "0.png", "depth": n} for n in ("0.png", "1.png", "d.png")])
    refused(tmp_path, r"line 3: there is no file 'd\.png'")


def test_a_listing_in_another_encoding_is_refused_with_its_line(tmp_path):
    folder_of(tmp_path)
    text = '{"file_name": "0.png", "text": ""}\n{"file_name": "1.png", "text": "für"}\n'
    (tmp_path / "metadata.jsonl").write_bytes(text.encode("latin-1"))
    refused(tmp_path, "line 2: expected")


def test_a_listing_of_nothing_is_refused(tmp_path):
    write(tmp_path, ["", " "])
    refused(tmp_path, r"metadata\.jsonl names no files")


@pytest.mark.parametrize("validation", [10, 11, -1])
def test_a_folder_that_validation_would_empty_is_refused_with_both_numbers(tmp_path, validation):
    folder_of(tmp_path)
    refused(tmp_path, f"there are 10, .* {validation}; set it below 10", validation=validation)


def test_an_unreadable_image_is_a_fault_and_a_missing_file_an_error_of_the_system(tmp_path):
    names = folder_of(tmp_path)
    (tmp_path / names[5]).write_bytes(b"no image")
    source = Folder(str(tmp_path), validation=0).open("train")
    assert source[5]["caption"] == "picture 5 ☀"
    match = r"metadata\.jsonl, line 6: file_name deep/er/5\.png cannot be read as an image"
    with pytest.raises(BadRecord, match=match) as refusal:
        source.read(5, source.fields)
    assert "\n" not in str(refusal.value)
    (tmp_path / names[5]).unlink()
    with pytest.raises(FileNotFoundError, match=r"5\.png"):
        source.read(5, source.fields)
