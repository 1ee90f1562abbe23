import json
import pickle

import numpy as np
import pytest
from PIL import Image
from small_tfds import FIELDS, H, Small, W, example, pose

from onediff_jax.data.sources.tfds import Tfds
from onediff_jax.errors import BadRecord, InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    builder = Small(data_dir=folder, file_format="array_record")
    builder.download_and_prepare(download_dir=folder / "nothing")
    return folder


def settings(folder, **changes):
    given = dict(path=str(folder), name="small", fields=FIELDS, pictures={"hed": "hed"})
    return Tfds(**(given | dict(validation=0) | changes))


def test_records_are_what_the_data_set_was_made_of(folder):
    source = settings(folder).open("train")
    assert len(source) == 10 and source.fields == {*FIELDS, "pictures.hed"}
    for number in range(9):
        record = source.read(number, source.fields)
        made = example(number)
        np.testing.assert_array_equal(record["image"], Image.open(made["picture"]))
        hed = np.full((H, W, 3), 100 + number, np.uint8)
        np.testing.assert_array_equal(record["pictures"]["hed"], hed)
        assert record["caption"] == source.caption(number) == f"second {number} ☀"
        assert record["names"] == ("dog", "cat") and record["colors"] == ("röd", "blue")
        assert record["item"] == "dining table"
        assert np.isinf(record["depth"][0, 0]) and (record["depth"][1:] == 2 + number).all()
        np.testing.assert_array_equal(record["instances"], Image.open(made["maps"]["instances"]))
        assert record["keypoints"].shape == (number % 3, 17, 3)
        assert [p[0, 0, 0] for p in record["references"]] == [200, 201]
        assert [p[0, 0, 0] for p in record["frames"]] == [0, 1, 2]
        for i, camera in enumerate(record["cameras"]):
            np.testing.assert_array_equal(camera.intrinsics, i + np.eye(3))
            np.testing.assert_array_equal(camera.camera_to_world, pose(i))


def test_normalised_boxes_become_pixels_from_the_left_and_the_top(folder):
    # TFDS: ymin, xmin, ymax, xmax over height and width.
    found = settings(folder).open("train")[1]["boxes"]
    np.testing.assert_allclose(found, [[6, 10, 54, 20], [0, 0, 60, 40]], rtol=1e-6)
    source = settings(folder, fields=FIELDS | {"boxes": "objects/xywh"}).open("train")
    np.testing.assert_allclose(source[1]["boxes"], [[6, 10, 36, 30]] * 2)


def test_an_image_that_exif_turns_has_no_certain_boxes(folder):
    with pytest.raises(BadRecord, match=r"train, record 9: image is turned by EXIF \(orien"):
        settings(folder).open("train").read(9, ["image", "boxes"])
    fields = {"image": "picture"}
    assert settings(folder, fields=fields).open("train").read(9, ["image"])["image"].shape == (
        W, H, 3,
    )  # fmt: skip


def test_records_are_held_out_or_a_split_is_named(folder):
    def depths(split, **changes):
        source = settings(folder, **changes).open(split)
        return [int(source[i]["depth"][1, 1]) - 2 for i in range(min(len(source), 9))]

    assert depths("validation", validation=2) == [0, 5]
    assert depths("train", validation=2, train="train[:8]") == [1, 2, 3, 5, 6, 7]
    assert len(settings(folder, held_out="test").open("validation")) == 4
    assert len(settings(folder, held_out="test", validation=64).open("train")) == 10


def test_a_source_travels_to_workers(folder):
    source = settings(folder).open("train")
    source[3]["image"]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.caption(3) == source.caption(3) and copy.where(3) == source.where(3)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"name": "absent"}, "has no data set 'absent' of TFDS"),
        ({"fields": {}}, "must say where the image is"),
        ({"fields": {"image": "picture", "smell": "hed"}}, "fields .* has 'smell'; it can have im"),
        ({"fields": {"image": "pictur"}}, "have no 'pictur' there; there is .*picture"),
        ({"fields": {"image": "maps/dept"}}, "have no 'dept' there"),
        ({"fields": {"image": "picture", "item": "captions/text"}}, "a sequence of Text; it must"),
        ({"fields": {"image": "kind"}}, "which is ClassLabel; it must be an Image outside of seq"),
        ({"fields": {"image": "others/0"}}, "must be an Image outside of sequences"),
        ({"fields": FIELDS | {"cameras": "people"}}, "must be a sequence of intrinsics"),
        ({"fields": {"image": "picture", "depth": "kind"}}, "ClassLabel; it must be an Image or T"),
        ({"fields": {"image": "picture", "instances": "maps/depth"}}, "Tensor; .* whole numbers"),
        ({"fields": {"image": "picture", "boxes": "people"}}, "must be a sequence of BBoxFeature"),
        ({"fields": {"image": "picture", "names": "kind"}}, "must be a sequence of Text or Class"),
        ({"fields": {"image": "picture", "keypoints": "maps/depth"}}, "sequence of Tensor .17, 3"),
        ({"pictures": {"hed": "kind"}}, "pictures.hed='kind', which is ClassLabel"),
        ({"train": "trian"}, "has no split 'trian' that can be read"),
        ({"held_out": "tset"}, "has no split 'tset'"),
        ({"validation": 10}, "there are 10, .* holds out 10; set it below 10"),
    ],
)
def test_a_wrong_mapping_is_refused_when_it_is_opened(folder, changes, match):
    with pytest.raises(InputError, match=match) as refusal:
        settings(folder, **changes).open("validation" if "held_out" in changes else "train")
    assert "\n" not in str(refusal.value) and not isinstance(refusal.value, BadRecord)


def test_a_caption_may_be_a_sequence_of_texts(folder):
    source = settings(folder, fields={"image": "picture", "caption": "captions/text"}).open("train")
    expected = ("first 3 ☀", "second 3 ☀")
    assert source.caption(3) == source.read(3, ["caption"])["caption"] == expected


def test_settings_can_be_written_in_a_config(folder):
    from onediff_jax.train.config import as_dict, build_source

    given = settings(folder)
    values = json.loads(json.dumps(as_dict(given)))
    assert build_source(values, "config") == given and values["kind"] == "tfds"
