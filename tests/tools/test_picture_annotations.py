import shutil

import numpy as np
import pytest
from picture_packages import (
    NAMES,
    annotations,
    classes,
    fetch,
    fetch_pictures,
    refusal,
    subjects,
)
from PIL import Image
from pycocotools.coco import COCO

from onediff_jax.data.sources.coco import Coco
from onediff_jax.data.sources.identities import Identities
from onediff_jax.data.tasks.table import TASKS

pytest_plugins = ("picture_packages",)

ADDED = {"instances.json", "captions.json", "subjects"}


@pytest.fixture
def drawn(tmp_path):
    """Two images of known masks, annotated."""
    alpha = np.zeros((12, 20), np.uint8)
    alpha[2:9, 3:8] = 255
    alpha[4, 8], alpha[4, 9] = 128, 127  # just inside, just outside
    other = np.full((12, 20), 200, np.uint8)
    for name, a in {"a.webp": alpha, "b.webp": other}.items():
        image = np.dstack([np.full((12, 20, 3), 90, np.uint8), a])
        Image.fromarray(image, "RGBA").save(tmp_path / name, "webp", lossless=True, exact=True)
    captions = {"a.webp": "a kite", "b.webp": "an owl"}
    done = []
    annotations.write_annotations(
        tmp_path, captions, {"a.webp": "toy", "b.webp": "bird"}.get, lambda: done.append(1)
    )
    assert len(done) == 2
    return tmp_path, [alpha >= 128, other >= 128]


def test_cocos_own_reader_finds_the_masks_boxes_classes_and_captions(drawn):
    folder, masks = drawn
    instances, captions = (COCO(folder / f"{name}.json") for name in ("instances", "captions"))
    for number, (mask, text, kind) in enumerate(
        zip(masks, ("a kite", "an owl"), ("toy", "bird"), strict=True)
    ):
        image = instances.loadImgs(number + 1)[0]
        assert image["file_name"] == f"{'ab'[number]}.webp"
        (annotation,) = instances.imgToAnns[image["id"]]
        np.testing.assert_array_equal(instances.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum()
        assert instances.cats[annotation["category_id"]]["name"] == kind
        assert [a["caption"] for a in captions.imgToAnns[image["id"]]] == [text]
    assert instances.imgToAnns[1][0]["bbox"] == [3, 2, 6, 7]  # left, top, width, height


def test_the_source_of_coco_serves_captions_maps_and_boxes(drawn):
    folder, masks = drawn
    settings = Coco(str(folder), instances="instances.json", captions="captions.json", validation=0)
    source = settings.open("train")
    for task in ("text2image", "image_inpainting", "semanticmap2image", "boundingbox2image"):
        assert TASKS[task].takes(source.fields)
    record = source.read(0, source.fields)
    assert record["caption"] == ("a kite",) and record["names"] == ("toy",)
    np.testing.assert_array_equal(record["instances"], masks[0])
    np.testing.assert_array_equal(record["boxes"], [[3, 2, 9, 9]])


def test_an_image_of_nothing_has_a_caption_and_no_instance(tmp_path):
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "a.png")
    annotations.write_annotations(tmp_path, {"a.png": "fog"}, lambda _: "sky", lambda: None)
    assert not COCO(tmp_path / "instances.json").anns
    assert len(COCO(tmp_path / "captions.json").anns) == 1


def test_a_class_is_a_run_of_the_order_whatever_the_skin():
    order = {chr(0x10000 + i): name for i, name in enumerate(classes.RUNS)}
    last = max(order)
    order["\U0001f3f4\u200d\u2620\ufe0f"] = "pirate flag"
    found = classes.classes_of(order)
    assert found[classes.essential_codes("\U0001f3f4\u200d\u2620")] == "flag" == found[(ord(last),)]
    assert [found[(ord(text),)] for text in order if text <= last and len(text) == 1] == [
        *classes.RUNS.values()
    ]
    waving = classes.essential_codes("\U0001f44b\U0001f3fd\ufe0f")
    assert waving == (0x1F44B,)
    order.pop(next(text for text, name in order.items() if name == "bread"))
    with pytest.raises(ValueError, match="bread"):
        classes.classes_of(order)


@pytest.mark.parametrize(
    ("caption", "subject"),
    [
        ("a male farmer, dark skin tone", "farmer"),
        ("a farmer", "farmer"),
        ("a woman with red hair, medium-light skin tone", "person"),
        ("a bald man", "person"),
        ("a person with a beard", "person"),
        ("a girl", "child"),
        ("an old woman, light skin tone", "older person"),
        ("a man biking", "person biking"),
        ("a person biking", "person biking"),
        ("a mermaid", "merperson"),
        ("a princess", "person with a crown"),
        ("two women wrestling", "two people wrestling"),
        ("two men kissing, dark skin tone", "two people kissing"),
        ("a man and a woman kissing", "two people kissing"),
        ("a woman and man holding hands", "two people holding hands"),
        ("a family of a man and two girls", "family"),
        ("thumbs up, medium skin tone", "thumbs up"),
        ("a tropical fish", "tropical fish"),
        ("a snowman without snow", "snowman without snow"),
        ("the flag of the Isle of Man", "flag of the Isle of Man"),
    ],
)
def test_a_subject_is_its_caption_without_skin_gender_and_hair(caption, subject):
    assert subjects.subject(caption) == subject


def test_subjects_are_identity_folders_that_travel(tmp_path):
    (here := tmp_path / "here").mkdir()
    captions = {f"{i}.png": f"a {look} judge" for i, look in enumerate(("male", "female", "old"))}
    captions |= {f"t_{skin}.png": f"a thumbs up, {skin} skin tone" for skin in ("dark", "light")}
    captions |= {"judge.png": "a judge", "t.png": "a thumbs up"}
    captions |= {f"tree_{i}.png": "a tree" for i in range(2)}  # too few
    for i, name in enumerate(captions):
        Image.new("RGB", (4, 4), (i, 9, 9)).save(here / name)
    subjects.write_subjects(here, captions)
    assert {f.name for f in (here / "subjects").iterdir() if f.is_dir()} == {"judge", "thumbs_up"}
    shutil.move(here, tmp_path / "there")
    source = Identities(
        str(tmp_path / "there" / "subjects"), subjects="thing", least=3, validation=0
    ).open("train")
    assert TASKS["subject_driven"].takes(source.fields)
    found = [source.read(i, source.fields) for i in range(len(source))]
    assert [(r["item"], r["caption"]) for r in found] == [
        ("judge", "a male judge"),
        ("judge", "a female judge"),
        ("judge", "a judge"),
        ("thumbs up", "a thumbs up, dark skin tone"),
        ("thumbs up", "a thumbs up, light skin tone"),
        ("thumbs up", "a thumbs up"),
    ]
    assert [r["image"][0, 0, 0] for r in found] == [0, 1, 5, 3, 4, 6]
    assert [p[0, 0, 0] for p in found[0]["item_references"]] == [1, 5]


def as_it_was(place):
    """Makes a fetched folder what it was before there were annotations."""
    for name in ADDED - {"subjects"}:
        (place / name).unlink()
    shutil.rmtree(place / "subjects")
    credits = (place / "ATTRIBUTION.txt").read_text()
    (place / "ATTRIBUTION.txt").write_text(credits.partition(fetch_pictures.ORDER_ATTRIBUTION)[0])


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_fetched_folder_has_the_class_of_every_image(npm_does, place):
    fetch(place)
    instances = COCO(place / "instances.json")
    of_image = {
        instances.imgs[a["image_id"]]["file_name"]: instances.cats[a["category_id"]]["name"]
        for a in instances.anns.values()
    }
    kinds = {"2764-fe0f": "heart", "1f60d": "face", "1f44d-1f3ff": "hand"}
    assert of_image == {f"{stem}.webp": kind for stem, kind in kinds.items()}
    texts = {a["caption"] for a in COCO(place / "captions.json").anns.values()}
    assert texts == {text for _, text in NAMES.values()}


def test_a_folder_without_annotations_is_completed_and_its_images_are_not_fetched(
    npm_does, packages, place, monkeypatch, capsys
):
    monkeypatch.setattr(subjects, "LEAST", 1)
    fetch(place)
    assert (place / "subjects" / "red_heart" / "2764-fe0f.webp").is_symlink()
    whole = contents(place)
    as_it_was(place)
    npm_does(f'case "$*" in *{fetch_pictures.ORDER}) cp {packages}/order.tgz .;; *) exit 1; esac')
    fetch(place)
    assert contents(place) == whole
    assert capsys.readouterr().out.count(f"3 captioned images are in {place}.") == 2
    for missing in ("captions.json", "subjects/red_heart/2764-fe0f.webp"):
        (place / missing).unlink()  # all are written anew
        fetch(place)
        assert contents(place) == whole
    fetch(place)
    assert "already" in capsys.readouterr().out
    assert [path.name for path in place.parent.iterdir()] == ["pictures"]


def test_a_folder_that_cannot_be_completed_stays_as_it_was(npm_does, place, monkeypatch, capsys):
    fetch(place)
    as_it_was(place)
    before = contents(place)
    monkeypatch.setattr(fetch_pictures, "write_subjects", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fetch(place)
    assert contents(place) == before
    npm_does("exit 1")
    assert fetch_pictures.ORDER in refusal(capsys, "--out", place)[1]
    assert contents(place) == before
    assert [path.name for path in place.parent.iterdir()] == ["pictures"]


@pytest.mark.parametrize("own", ["instances.json", "subjects/thesis.txt"])
def test_own_files_of_the_names_of_annotations_are_never_replaced(npm_does, place, capsys, own):
    fetch(place)
    if own == "instances.json":
        as_it_was(place)
    (place / own).write_text("mine")
    for options in ([], ["--force"]):
        assert f"({own.split('/')[0]}" in refusal(capsys, "--out", place, *options)[1]
        assert (place / own).read_text() == "mine"
