"""The built-in scenes as a source: every field, made when it is asked for."""

import concurrent.futures
import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from onediff_jax.data.records import StoredRecord
from onediff_jax.data.scenes import basic_render as render
from onediff_jax.data.scenes import build as full_builder
from onediff_jax.data.scenes import placement as full_scenes
from onediff_jax.data.scenes.render import Shot
from onediff_jax.data.scenes.render import render as render_shots
from onediff_jax.data.scenes.source import FullRecords, Scenes
from onediff_jax.errors import InputError

TRAIN, VALIDATION, SIZE, VIEWS = 16, 8, 48, 3


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return {
        "path": str(tmp_path_factory.mktemp("scenes")), "size": SIZE, "train": TRAIN,
        "validation": VALIDATION, "seed": 2, "content": "full", "views": VIEWS,
    }  # fmt: skip


@pytest.fixture(scope="module")
def every(settings):
    return FullRecords(Scenes(**settings), "train")


def test_a_record_has_every_field_of_its_source(settings, every):
    for groups, more in FullRecords.grouped.items():
        source = FullRecords(Scenes(**settings, groups=groups), "train")
        assert source.fields == every.fields | more
        for record in (source[i] for i in range(len(source))):
            assert set(record) == source.fields
            for name in record:
                assert record[name] is record[name]  # made once


def test_groups_choose_the_scenes_of_their_kind(settings, every):
    figures, objects = (
        FullRecords(Scenes(**settings, groups=kind), "train") for kind in ("figures", "objects")
    )
    assert len(every) == TRAIN and len(figures) == len(objects) == TRAIN // 2
    assert [figures.caption(i) for i in range(4)] == [every.caption(i) for i in range(4)]
    assert [objects.caption(i) for i in range(4)] == [every.caption(i) for i in range(4, 8)]
    assert all("person" in figures[i]["names"] for i in range(len(figures)))
    assert all("person" not in objects[i]["names"] for i in range(len(objects)))


def test_references_are_the_other_scenes_of_the_group(settings):
    figures = FullRecords(Scenes(**settings, groups="figures"), "train")
    objects = FullRecords(Scenes(**settings, groups="objects"), "train")
    for source, kind in ((figures, "reference"), (objects, "item")):
        images = "references" if kind == "reference" else "item_references"
        for i in range(len(source)):
            mates = [j for j in range(i - i % 4, i - i % 4 + 4) if j != i]
            for j, image, caption in zip(
                mates, source[i][images], source[i][f"{kind}_captions"], strict=True
            ):
                assert_array_equal(image, source[j]["image"])
                assert caption == source[j]["caption"]
            if kind == "item":
                assert source[i]["item"] == source[mates[0]]["item"]
                assert all(source[i]["item"] in source[j]["caption"] for j in [i, *mates])


def test_maps_boxes_and_names_agree(every):
    for record in (every[i] for i in range(TRAIN)):
        instances = record["instances"]
        assert instances.max() == len(record["names"]) == len(record["boxes"])
        assert len(record["colors"]) == len(record["places"]) == len(record["names"])
        assert record["boxes"].dtype == np.float32
        for number, (left, top, right, bottom) in enumerate(record["boxes"].astype(int), 1):
            mask = instances == number
            assert mask[top:bottom, left:right].sum() == mask.sum() > 0
            assert mask[top].any() and mask[bottom - 1].any()
            assert mask[:, left].any() and mask[:, right - 1].any()
        lengths = np.linalg.norm(record["normals"], axis=-1)
        seen = record["depth"] < render.FAR
        assert_allclose(lengths[seen & (instances > 0)], 1, atol=0.02)


def test_the_first_frame_is_the_image_and_every_frame_has_its_camera(every):
    for index in range(4):
        record = every[index]
        assert len(record["frames"]) == len(record["cameras"]) == VIEWS
        assert_array_equal(record["frames"][0], record["image"])
        scene = full_scenes.draw_full_scene(2, "train", index, VIEWS)
        for camera, drawn in zip(record["cameras"], scene.cameras, strict=True):
            arrays = drawn.arrays()
            assert_array_equal(camera.camera_to_world, arrays.camera_to_world)
            assert_array_equal(camera.intrinsics, render.intrinsics(arrays, SIZE))
        solids, light = scene.solids(), scene.light.arrays()
        shots = [Shot(solids, light, camera.arrays()) for camera in scene.cameras]
        seen = render_shots(shots, SIZE)
        images = [np.round(255 * each.image) for each in seen]
        assert_array_equal(np.stack(record["frames"]), images)
        assert_array_equal(record["depth"], seen[0].depth)


def test_keypoints_are_pixels_of_people(settings):
    figures = FullRecords(Scenes(**settings, groups="figures"), "train")
    for record in (figures[i] for i in range(len(figures))):
        [person] = record["keypoints"]
        mask = np.pad(record["instances"] == record["names"].index("person") + 1, 1)
        for x, y, visibility in person:
            if visibility == 2:
                assert mask[int(y) : int(y) + 3, int(x) : int(x) + 3].any()


def test_an_edit_is_another_image(every):
    for record in (every[i] for i in range(TRAIN)):
        changed = np.abs(record["edited"].astype(int) - record["image"]).max(axis=-1) > 20
        assert changed.mean() > 0.008
        assert record["instruction"]


def test_a_field_costs_nothing_until_it_is_asked_for(every, monkeypatch):
    decoded = []
    original = FullRecords._image
    monkeypatch.setattr(
        FullRecords, "_picture", lambda *args: decoded.append(args[2]) or original(*args)
    )
    record = FullRecords.__getitem__(every, 5)
    record["caption"], record["boxes"], record["cameras"]
    assert decoded == []
    record["image"], record["image"]
    assert decoded == ["image"]
    record["frames"]
    assert decoded == ["image", "more_views"]


def test_a_lazy_record_is_a_mapping():
    record = StoredRecord({"a": lambda: 1, "b": lambda: 1 / 0})
    assert dict.fromkeys(record) == {"a": None, "b": None} and len(record) == 2
    assert record["a"] == 1 and "b" in record and "c" not in record
    with pytest.raises(ZeroDivisionError):
        record["b"]
    with pytest.raises(KeyError):
        record["c"]


def test_a_source_travels_to_a_worker(every):
    again = pickle.loads(pickle.dumps(every))
    assert_array_equal(again[3]["image"], every[3]["image"])


def test_splits_are_disjoint(settings, every):
    held_out = FullRecords(Scenes(**settings), "validation")
    assert len(held_out) == VALIDATION
    images = {every[i]["image"].tobytes() for i in range(TRAIN)}
    assert not images & {held_out[i]["image"].tobytes() for i in range(VALIDATION)}


def test_chunks_make_no_difference():
    [record] = full_builder.records(2, "train", SIZE, VIEWS, range(6, 7))
    _, again = full_builder.records(2, "train", SIZE, VIEWS, range(5, 7))
    assert record["image"].getvalue() == again["image"].getvalue()
    assert record["long_caption"] == again["long_caption"]


def test_other_processes_make_the_same_scenes_in_the_same_order(
    settings, every, tmp_path, monkeypatch
):
    pools = []

    class Pool(concurrent.futures.ProcessPoolExecutor):
        def __init__(self, *arguments):
            pools.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(full_builder, "ALONE", 4)
    monkeypatch.setattr(full_builder, "CHUNK", 4)
    few = {**settings, "path": str(tmp_path), "train": 8, "validation": 4}
    built = FullRecords(Scenes(**few), "train")
    assert len(pools) == 1 and len(built) == 8  # one chunk of validation is made here
    for index in range(8):
        again, record = built[index], every[index]
        for name in built.fields - {"cameras"}:
            assert_array_equal(again[name], record[name])
        for camera, other in zip(again["cameras"], record["cameras"], strict=True):
            assert all(map(np.array_equal, camera, other))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"content": "rich"}, "content is 'rich'; it can be basic, full"),
        ({"groups": "people"}, "groups is 'people'; it can be all, figures, objects"),
        ({"content": "basic"}, "Basic scenes have one view and no groups, not views=3"),
    ],
)
def test_impossible_settings_are_refused(settings, changes, match):
    with pytest.raises(InputError, match=match):
        Scenes(**{**settings, **changes})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"train": 18}, "groups of 4, which train=18"),
        ({"views": 0}, "views=0; set it to at least 1"),
        ({"size": 4}, "size=4"),
    ],
)
def test_a_set_that_cannot_be_built_is_refused(settings, changes, match):
    with pytest.raises(InputError, match=match):
        Scenes(**{**settings, **changes}).open("train")
