import colorsys
import functools
import hashlib
import pickle
import re
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from onediff_jax.data.scenes import basic as scenes
from onediff_jax.data.scenes import basic_builder as scenes_builder
from onediff_jax.data.scenes import basic_render as render
from onediff_jax.errors import InputError

NUMBER = 40


@functools.cache
def drawn():
    return [scenes.draw_scene(3, "train", i) for i in range(NUMBER)]


@functools.cache
def seen():
    return [render.render(scene.arrays(), 32) for scene in drawn()]


def test_the_basic_scenes_are_those_that_the_published_numbers_are_of():
    words, images = hashlib.sha256(), hashlib.sha256()
    for split in ("train", "validation"):
        for i in range(40):
            scene = scenes.draw_scene(0, split, i)
            words.update(repr(scene).encode())
            words.update(scenes.caption(scene, i).encode())
    assert words.hexdigest() == ("1e502971ea75e0b556e1be8fc873199620bd9bb62ce0bc437ef69c201c7eeb79")
    for i in range(16):
        image = render.render(scenes.draw_scene(0, "train", i).arrays(), 32)
        images.update(np.round(255 * image.image).astype(np.uint8).tobytes())
        images.update(np.float32(image.depth).tobytes())
        images.update(np.uint8(image.instances).tobytes())
    assert images.hexdigest() == (
        "e8beb9d4a44f6eb96bf7a32684c568a55b5bf5f83e421f2880dba7622c439890"
    )


def hue(color):
    return colorsys.rgb_to_hsv(*color)[0]


def hue_distance(a, b):
    return min(abs(a - b), 1 - abs(a - b))


def foot(item):
    """Radius of the ground that an object may cover."""
    return item.half[0] if item.shape == "sphere" else np.hypot(*item.half[:2])


def test_a_scene_is_a_function_of_seed_split_and_index():
    assert scenes.draw_scene(3, "train", 7) == drawn()[7]
    others = [
        scenes.draw_scene(4, "train", 7),
        scenes.draw_scene(3, "validation", 7),
        scenes.draw_scene(3, "train", 8),
    ]
    assert all(other != drawn()[7] for other in others)
    assert len({scene.camera for scene in [*drawn(), *others[:2]]}) == NUMBER + 2


def test_scenes_show_one_to_three_objects_of_distinct_colors():
    assert {len(scene.objects) for scene in drawn()} == {1, 2, 3}
    for scene in drawn():
        colors = [item.color for item in scene.objects]
        assert len(set(colors)) == len(colors)
    every = [item for scene in drawn() for item in scene.objects]
    for field, values in (
        ("shape", scenes.SHAPES),
        ("color", scenes.PALETTE),
        ("size", scenes.SIZES),
        ("place", scenes.PLACES),
    ):
        assert {getattr(item, field) for item in every} == set(values)


def test_objects_stand_on_the_ground_and_apart():
    for scene in drawn():
        for i, item in enumerate(scene.objects):
            assert item.center[2] == item.half[2]
            for other in scene.objects[:i]:
                gap = np.hypot(*np.subtract(item.center, other.center)[:2])
                assert gap > foot(item) + foot(other)


def test_large_objects_are_larger_than_small_ones():
    volumes = {size: [] for size in scenes.SIZES}
    for scene in drawn():
        for item in scene.objects:
            volumes[item.size].append((item.shape, np.prod(item.half)))
    for shape in scenes.SHAPES:
        small, large = ([v for s, v in volumes[size] if s == shape] for size in ("small", "large"))
        assert min(large) > 1.5 * max(small)


def test_every_object_covers_its_share_of_the_image():
    shares = []
    for scene, image in zip(drawn(), seen(), strict=True):
        assert image.instances.max() == len(scene.objects)
        shares += [(image.instances == i + 1).mean() for i in range(len(scene.objects))]
    assert min(shares) > 0.018
    assert max(shares) < 0.52
    foreground = np.mean([image.instances > 0 for image in seen()])
    assert 0.25 < foreground < 0.4


def test_places_and_order_agree_with_the_instance_map():
    columns = (np.arange(32) + 0.5) / 32
    for scene, image in zip(drawn(), seen(), strict=True):
        middles = [
            ((image.instances == i + 1) * columns).sum() / (image.instances == i + 1).sum()
            for i in range(len(scene.objects))
        ]
        assert middles == sorted(middles)
        assert [item.place for item in scene.objects] == [
            scenes.PLACES[int(3 * middle)] for middle in middles
        ]


def test_colors_can_be_told_by_hue_under_the_scenes_light():
    hues = {name: hue(color) for name, color in scenes.PALETTE.items()}
    for scene, image in zip(drawn(), seen(), strict=True):
        for i, item in enumerate(scene.objects):
            median = np.median(image.image[image.instances == i + 1], axis=0)
            nearest = min(hues, key=lambda name: hue_distance(hues[name], hue(median)))
            assert nearest == item.color
            assert colorsys.rgb_to_hsv(*median)[1] > 0.45
        ground = image.image[image.instances == 0]
        saturation = 1 - ground.min(axis=-1) / ground.max(axis=-1)
        assert np.mean(saturation > 0.45) < 0.2  # only where pixels mix with an object's edge


def test_captions_name_every_object_in_order():
    synonyms = {word: name for name, words in scenes.WORDS.items() for word in words}
    place = "|".join(sorted(map(re.escape, synonyms), key=len, reverse=True))
    phrase = re.compile(rf"a (small|large) (\w+) (sphere|ball|box|block) ({place})")
    said = set()
    for scene in drawn():
        for seed in range(12):
            text = scenes.caption(scene, seed)
            assert text == scenes.caption(scene, seed)
            assert len(text.split()) < 30
            found = [
                (size, color, synonyms[shape], synonyms[place])
                for size, color, shape, place in phrase.findall(text)
            ]
            assert found == [(o.size, o.color, o.shape, o.place) for o in scene.objects]
            said.update(word for word in synonyms if word in text)
    assert said == set(synonyms)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    return folder, scenes_builder.build(folder, size=24, train=18, validation=3, seed=3)


def test_a_build_reads_back_exactly(built):
    assert "tensorflow" not in sys.modules
    train = built[1].as_data_source(split="train")
    assert (len(train), len(built[1].as_data_source(split="validation"))) == (18, 3)
    render_all = scenes_builder._renderer(24)
    for index, scene in enumerate(drawn()[:18]):
        record = train[index]
        image, depth, instances = (field[0] for field in render_all([scene]))
        assert_array_equal(record["image"], image)
        assert_array_equal(record["instances"][..., 0], instances)
        assert_array_equal(record["depth"], depth)
        assert record["depth"].dtype == np.float32
        camera = scene.camera.arrays()
        assert_array_equal(record["camera_to_world"], camera.camera_to_world)
        assert_array_equal(record["intrinsics"], render.intrinsics(camera, 24))
        assert record["caption"].decode() == scenes.caption(scene, index)
        for field in ("shape", "color", "size", "place"):
            names = [name.decode() for name in record["objects"][field]]
            assert names == [getattr(item, field) for item in scene.objects]
        for i, (left, top, right, bottom) in enumerate(record["objects"]["box"]):
            mask = instances == i + 1
            assert mask[top:bottom, left:right].sum() == mask.sum()
            assert mask[top].any() and mask[bottom - 1].any()
            assert mask[:, left].any() and mask[:, right - 1].any()
    assert "tensorflow" not in sys.modules


def test_what_is_compiled_agrees_with_numpy(built):
    record, expected = built[1].as_data_source(split="train")[0], render.render(
        drawn()[0].arrays(), 24
    )  # fmt: skip
    assert np.abs(record["image"] / 255.0 - expected.image).mean() < 0.003
    assert_allclose(record["depth"], expected.depth, rtol=1e-3)


def test_a_set_that_is_there_is_not_built_again(built, monkeypatch):
    monkeypatch.setattr(scenes, "draw_scene", lambda *key: pytest.fail("drawn again"))
    again = scenes_builder.build(built[0], size=24, train=18, validation=3, seed=3)
    first = [builder.as_data_source(split="train")[5] for builder in (built[1], again)]
    assert_array_equal(first[0]["image"], first[1]["image"])


def test_other_settings_are_another_set(built):
    other = scenes_builder.build(built[0], size=24, train=2, validation=1, seed=4)
    assert other.data_path != built[1].data_path
    image = other.as_data_source(split="train")[0]["image"]
    assert (image != built[1].as_data_source(split="train")[0]["image"]).any()


def test_a_data_source_travels_to_a_worker(built):
    train = built[1].as_data_source(split="train")
    assert_array_equal(pickle.loads(pickle.dumps(train))[4]["depth"], train[4]["depth"])


def test_an_interrupted_build_is_not_taken_for_complete(tmp_path, monkeypatch):
    settings = {"size": 24, "train": 2, "validation": 1, "seed": 3}
    record, calls = scenes_builder._record, []

    def breaks(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return record(*args)

    with monkeypatch.context() as patch:
        patch.setattr(scenes_builder, "_record", breaks)
        with pytest.raises(KeyboardInterrupt):
            scenes_builder.build(tmp_path, **settings)
    assert not list(tmp_path.rglob("dataset_info.json"))
    # A killed process cannot tidy up; what it leaves must not be mistaken either.
    left = tmp_path / "scenes" / "24px-2-1-seed3" / "1.0.0.incompleteABCDEF_24px-2-1-seed3"
    left.mkdir(parents=True, exist_ok=True)
    (left / "scenes-train.array_record-00000-of-00001").write_bytes(b"half")
    builder = scenes_builder.build(tmp_path, **settings)
    assert len(builder.as_data_source(split="train")) == 2


def test_of_two_processes_that_build_at_once_both_get_the_set(tmp_path, monkeypatch):
    settings = {"size": 24, "train": 2, "validation": 1, "seed": 3}
    record, faster = scenes_builder._record, []

    def overtaken(*args):
        if not faster:
            faster.append(None)
            faster.append(scenes_builder.build(tmp_path, **settings))
        return record(*args)

    monkeypatch.setattr(scenes_builder, "_record", overtaken)
    slower = scenes_builder.build(tmp_path, **settings)
    images = [b.as_data_source(split="train")[1]["image"] for b in (slower, faster[1])]
    assert_array_equal(*images)


def test_impossible_settings_are_refused(tmp_path):
    with pytest.raises(InputError, match="train=0.*at least 1"):
        scenes_builder.build(tmp_path, size=24, train=0, validation=1, seed=0)
