import json
import pathlib
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from onediff_jax.data.sources.coco import Coco
from onediff_jax.errors import BadRecord, InputError

H, W = 40, 60
TRIANGLE = [[5.0, 5, 50, 8, 20, 35]]
SMALL = [[10.0, 10, 16, 10, 16, 16, 10, 16], [30.0, 10, 36, 10, 36, 16, 30, 16]]
RUNS = {"size": [H, W], "counts": [100, 50, H * W - 150]}
KEYPOINTS = [0, 0, 0] * 15 + [12, 7, 2, 59, 39, 1]


def annotation(number, image, segmentation, box, category=7, **more):
    names = {"id": number, "image_id": image, "segmentation": segmentation, "bbox": box}
    return names | {"category_id": category, "iscrowd": 0, "area": 1} | more


ANNOTATIONS = [
    annotation(1, 30, TRIANGLE, [5, 5, 45.5, 30]),
    annotation(2, 30, SMALL, [10, 10, 26, 6], 9),
    annotation(3, 10, RUNS, [2, 0, 2, 40]),
    annotation(4, 10, RUNS, [2, 0, 2, 40], iscrowd=1),
    annotation(5, 40, RUNS, [2, 0, 2, 40], iscrowd=1),
]


def folder_of(folder: pathlib.Path, annotations=ANNOTATIONS, **changes) -> None:
    """Images 10, 20, 30, 40; 20 has no annotation and 40 a crowd alone."""
    images = []
    for number in (10, 20, 30, 40):
        Image.new("RGB", (W, H), (number, 0, 0)).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": H, "width": W})
    categories = [{"id": 7, "name": "cat"}, {"id": 9, "name": "dining table"}]
    content = {"images": images, "annotations": annotations, "categories": categories} | changes
    (folder / "instances.json").write_text(json.dumps(content))
    captions = [{"id": i, "image_id": 10 + i // 2 * 20, "caption": f"c{i}"} for i in range(4)]
    people = [
        {"id": i, "image_id": n, "category_id": 1, "iscrowd": 0, "keypoints": points}
        for i, (n, points) in enumerate([(30, KEYPOINTS), (30, KEYPOINTS), (10, [0] * 51)])
    ]
    for name, values in (("captions", captions), ("people", people)):
        content = {"images": images, "annotations": values, "categories": categories}
        (folder / f"{name}.json").write_text(json.dumps(content))


def only(folder, **settings):
    settings = settings or {"instances": "instances.json"}
    return Coco(str(folder), **({"validation": 0} | settings)).open("train")


def record_in(folder, index=0, **settings):
    source = only(folder, **settings)
    return source.read(index, source.fields)


def test_instances_are_those_of_pycocotools(tmp_path, capsys):
    folder_of(tmp_path)
    witness = COCO(str(tmp_path / "instances.json"))
    source = only(tmp_path)
    assert source.fields == {"image", "instances", "names", "boxes"}
    assert len(source) == 2  # neither the image without annotations nor the one with a crowd
    for index, number in enumerate((10, 30)):
        record = source.read(index, source.fields)
        assert record["image"][0, 0, 0] == number
        annotations = witness.loadAnns(witness.getAnnIds(number, iscrowd=False))
        names = witness.loadCats([a["category_id"] for a in annotations])
        assert record["names"] == tuple(category["name"] for category in names)
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in annotations)]
        np.testing.assert_allclose(record["boxes"], boxes)
        masks = [witness.annToMask(a).astype(bool) for a in annotations]
        expected = np.zeros((H, W), int)
        for i, mask in enumerate(masks, start=1):  # the second is the smaller one
            expected[mask] = i
        np.testing.assert_array_equal(record["instances"], expected)
        assert record["instances"].dtype == np.uint8


def test_more_than_255_instances_keep_their_numbers(tmp_path):
    squares = [
        annotation(i, 10, [[x, y, x + 2, y, x + 2, y + 2, x, y + 2]], [x, y, 2, 2])
        for i, (x, y) in enumerate((2 * (i % 30), 2 * (i // 30)) for i in range(300))
    ]
    folder_of(tmp_path, squares)
    record = record_in(tmp_path)
    assert len(record["names"]) == 300 and record["instances"].dtype == np.uint16
    for i in (0, 254, 255, 256, 299):
        left, top = record["boxes"][i, :2].astype(int)
        assert (record["instances"][top : top + 2, left : left + 2] == i + 1).all()


def test_keypoints_are_at_the_centres_of_cocos_pixels(tmp_path):
    folder_of(tmp_path)
    record = record_in(tmp_path, keypoints="people.json")
    assert record["image"][0, 0, 0] == 30  # the other image has nobody with a keypoint
    assert record["keypoints"].shape == (2, 17, 3)
    np.testing.assert_array_equal(record["keypoints"][1, :15], np.zeros((15, 3)))
    np.testing.assert_array_equal(record["keypoints"][1, 15:], [[12.5, 7.5, 2], [59.5, 39.5, 1]])


def test_records_are_the_images_that_all_files_speak_of(tmp_path):
    folder_of(tmp_path)
    settings = {"instances": "instances.json", "captions": "captions.json"}
    source = only(tmp_path, **settings)
    assert source.fields == {"image", "instances", "names", "boxes", "caption"}
    assert [source.caption(i) for i in range(len(source))] == [("c0", "c1"), ("c2", "c3")]
    assert source.read(1, ["image", "caption"])["caption"] == ("c2", "c3")
    source = only(tmp_path, keypoints="people.json", captions=str(tmp_path / "captions.json"))
    assert len(source) == 1 and source.fields == {"image", "keypoints", "caption"}
    assert "image 30 of people.json and captions.json" in source.where(0)


def test_images_are_held_out(tmp_path):
    folder_of(tmp_path)
    parts = [
        Coco(str(tmp_path), captions="captions.json", validation=1).open(s)
        for s in ("train", "validation")
    ]
    assert {p.caption(0)[0] for p in parts} == {"c0", "c2"} and {len(p) for p in parts} == {1}


def test_a_source_travels_to_workers_and_is_small(tmp_path):
    many = [annotation(i, 10, TRIANGLE, [5, 5, 45.5, 30]) for i in range(200)]
    folder_of(tmp_path, many)
    source = only(tmp_path)
    data = pickle.dumps(source)
    assert len(data) < (tmp_path / "instances.json").stat().st_size / 10
    np.testing.assert_array_equal(pickle.loads(data)[0]["boxes"], source[0]["boxes"])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"segmentation": [[1, 2, 3, 4]]}, "segmentation does not fit .* height 40 and width 60"),
        ({"segmentation": RUNS | {"size": [W, H]}}, "segmentation does not fit"),
        ({"segmentation": RUNS | {"counts": [1, 2]}}, "segmentation does not fit"),
        ({"bbox": [1, 2, 3]}, "bbox must be 4 numbers"),
        ({"bbox": [1, 2, None, 3]}, r"boxes\[0\] is \[1.0, 2.0, nan|bbox must be"),
        ({"bbox": [1, 2, 0, 3]}, r"boxes\[0\] is \[1.0, 2.0, 1.0, 5.0\]"),
        ({"bbox": [70, 2, 5, 3]}, r"boxes\[0\] is .* 60 x 40"),
    ],
)
def test_a_wrong_annotation_is_a_fault_of_its_image(tmp_path, change, match):
    folder_of(tmp_path, [annotation(1, 10, RUNS, [2, 0, 2, 40]) | change])
    source = only(tmp_path)
    with pytest.raises(BadRecord, match=rf"image 10 of instances\.json: .*{match}") as fault:
        source.read(0, source.fields)
    assert "\n" not in str(fault.value)


def test_an_image_of_another_size_is_a_fault(tmp_path):
    folder_of(tmp_path)
    Image.new("RGB", (H, W)).save(tmp_path / "30.png")
    for settings in ({"keypoints": "people.json"}, {"instances": "instances.json"}):
        source = only(tmp_path, **settings)
        with pytest.raises(BadRecord, match=r"image 30 of .*60( x|,) 40"):
            source.read(len(source) - 1, source.fields)


def test_broken_keypoints_are_a_fault(tmp_path):
    people = [{"id": 1, "image_id": 10, "keypoints": [1, 1, 2] * 16}]
    folder_of(tmp_path, people)
    with pytest.raises(BadRecord, match="keypoints must be 17 times"):
        record_in(tmp_path, keypoints="instances.json")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"annotations": [annotation(6, 99, RUNS, [])]}, r"annotation 6: .*99"),
        ({"annotations": [annotation(6, 10, RUNS, [], 8)]}, "annotation 6: .*8 is missing or unkn"),
        (
            {"annotations": [{"id": 6, "image_id": 10, "bbox": []}]},
            "annotation 6: .*'segmentation'",
        ),
        ({"annotations": ["x"]}, "annotation x: "),
        ({"annotations": []}, "No image has annotations"),
        ({"images": [{"id": 10}]}, "image 10: 'file_name' is missing|annotation 1"),
        ({"images": None}, "expected COCO's images and annotations"),
    ],
)
def test_a_file_that_is_not_cocos_is_refused_when_it_is_opened(tmp_path, changes, match):
    folder_of(tmp_path, **changes)
    with pytest.raises(InputError, match=match) as refusal:
        only(tmp_path)
    assert "\n" not in str(refusal.value) and not isinstance(refusal.value, BadRecord)


def test_files_that_are_not_there_are_refused(tmp_path):
    folder_of(tmp_path)
    with pytest.raises(InputError, match="There is no file .*gone.json; .* names 'gone.json'"):
        only(tmp_path, instances="gone.json")
    with pytest.raises(InputError, match="names no JSON; set its instances, keypoints or captions"):
        Coco(str(tmp_path)).open("train")
    (tmp_path / "oops.json").write_text("{")
    with pytest.raises(InputError, match="oops.json: expected COCO's"):
        only(tmp_path, captions="oops.json")
