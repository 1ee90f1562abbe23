"""The built-in scenes as a source: every field, made when it is asked for."""

import pickle

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from onediff_jax.data.scenes import placement, render
from onediff_jax.data.scenes.source import Scenes
from onediff_jax.data.scenes.worlds import WORLDS
from onediff_jax.errors import InputError

TRAIN, VALIDATION, SIZE, VIEWS = 16, 8, 48, 3
FIELDS = {"basic": {"image", "caption", "depth", "instances", "names", "colors", "places", "boxes"}}
FIELDS["all"] = FIELDS["basic"] | {"edited", "instruction", "frames", "cameras"}
FIELDS["figures"] = FIELDS["all"] | {"keypoints", "references", "reference_captions"}
FIELDS["objects"] = FIELDS["all"] | {"item", "item_references", "item_captions"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return {
        "path": str(tmp_path_factory.mktemp("scenes")), "size": SIZE, "train": TRAIN,
        "validation": VALIDATION, "seed": 2, "content": "full", "views": VIEWS,
    }  # fmt: skip


@pytest.fixture(scope="module")
def sources(settings):
    basic = {**settings, "content": "basic", "views": 1}
    found = {kind: Scenes(**settings, groups=kind).open("train") for kind in list(FIELDS)[1:]}
    return found | {"basic": Scenes(**basic).open("train")}


@pytest.mark.parametrize("kind", FIELDS)
def test_records_hold_their_sources_fields_and_agree_with_the_scenes(kind, sources):
    source = sources[kind]
    assert source.fields == FIELDS[kind]
    for record in (source.read(i, source.fields) for i in range(len(source))):
        assert set(record) == source.fields
        instances = record["instances"]
        assert instances.max() == len(record["names"])
        for number, (left, top, right, bottom) in enumerate(record["boxes"].astype(int), 1):
            mask = instances == number
            assert mask[top:bottom, left:right].sum() == mask.sum() > 0
            assert mask[top].any() and mask[bottom - 1].any()
            assert mask[:, left].any() and mask[:, right - 1].any()


@pytest.mark.parametrize(("kind", "views"), [("basic", 1), ("all", VIEWS)])
def test_a_record_shows_its_scene_to_the_last_bit(kind, views, sources):
    world = WORLDS["basic" if kind == "basic" else "full"]
    for index in range(4):
        record = sources[kind][index]
        scene = placement.draw_scene(world, 2, "train", index, views)
        shots = [render.Shot(scene.solids(), scene.light, camera) for camera in scene.cameras]
        seen = render.render(shots, SIZE)
        images = [np.round(255 * each.image) for each in seen]
        assert_array_equal(record["image"], images[0])
        assert_array_equal(record["depth"], seen[0].depth)
        assert_array_equal(record["instances"], seen[0].instances)
        assert record["colors"] == tuple(item.color for item in scene.objects)
        assert record["places"] == tuple(item.place for item in scene.objects)
        if views > 1:
            assert_array_equal(np.stack(list(record["frames"])), images)
            for camera, drawn in zip(record["cameras"], scene.cameras, strict=True):
                assert_array_equal(camera.camera_to_world, drawn.camera_to_world)
                assert_array_equal(camera.intrinsics, drawn.intrinsics(SIZE))


def test_groups_choose_the_scenes_of_their_kind(sources):
    every, figures, objects = (sources[kind] for kind in ("all", "figures", "objects"))
    assert len(every) == TRAIN and len(figures) == len(objects) == TRAIN // 2
    assert [figures.caption(i) for i in range(4)] == [every.caption(i) for i in range(4)]
    assert [objects.caption(i) for i in range(4)] == [every.caption(i) for i in range(4, 8)]
    assert all("person" in figures[i]["names"] for i in range(len(figures)))
    assert all("person" not in objects[i]["names"] for i in range(len(objects)))


@pytest.mark.parametrize(("kind", "prefix"), [("figures", "reference"), ("objects", "item")])
def test_references_are_the_other_scenes_of_the_group(kind, prefix, sources):
    source = sources[kind]
    images = "references" if kind == "figures" else "item_references"
    assert source.least == {"frames": VIEWS, images: 3}
    for i in range(len(source)):
        mates = [j for j in range(i - i % 4, i - i % 4 + 4) if j != i]
        record = source[i]
        assert len(record[images]) == 3
        for j, image, caption in zip(
            mates, record[images], record[f"{prefix}_captions"], strict=True
        ):
            assert_array_equal(image, source[j]["image"])
            assert caption == source[j]["caption"]
        if kind == "objects":
            assert record["item"] == source[mates[0]]["item"]
            assert all(record["item"] in source[j]["caption"] for j in [i, *mates])


def test_keypoints_are_pixels_of_people(sources):
    for record in (sources["figures"][i] for i in range(TRAIN // 2)):
        [person] = record["keypoints"]
        mask = np.pad(record["instances"] == record["names"].index("person") + 1, 1)
        for x, y, visibility in person:
            if visibility == 2:
                assert mask[int(y) : int(y) + 3, int(x) : int(x) + 3].any()


def test_an_edit_is_another_image(sources):
    for record in (sources["all"][i] for i in range(TRAIN)):
        changed = np.abs(record["edited"].astype(int) - record["image"]).max(axis=-1) > 20
        assert changed.mean() > 0.008
        assert record["instruction"]


def test_captions_may_be_long(settings, sources):
    long = Scenes(**settings, captions="long").open("train")
    for i in range(4):
        assert len(sources["all"].caption(i)) + 40 < len(long.caption(i))
        assert long.caption(i) == long[i]["caption"]


def test_a_source_travels_to_a_worker(sources):
    for source in sources.values():
        again = pickle.loads(pickle.dumps(source))
        assert (len(again), again.fields, again.least) == (
            len(source),
            source.fields,
            source.least,
        )
        assert_array_equal(again[3]["image"], source[3]["image"])


def test_splits_are_disjoint(settings, sources):
    held_out = Scenes(**settings).open("validation")
    assert len(held_out) == VALIDATION
    images = {sources["all"][i]["image"].tobytes() for i in range(TRAIN)}
    assert not images & {held_out[i]["image"].tobytes() for i in range(VALIDATION)}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"content": "rich"}, "content is 'rich'; it can be basic or full"),
        ({"groups": "people"}, "groups is 'people'"),
        ({"content": "basic"}, "views=3 and groups='all'"),
        ({"content": "basic", "views": 1, "captions": "long"}, "captions='long'"),
        ({"train": 18}, "groups of 4, which train=18"),
        ({"views": 0}, "views is 0"),
        ({"size": 4}, "size is 4"),
        ({"path": "gs://bucket/scenes"}, "gs://bucket/scenes"),
    ],
)
def test_impossible_settings_are_refused(settings, changes, match):
    with pytest.raises(InputError, match=match):
        Scenes(**{**settings, **changes}).open("train")
