import hashlib
import math

import cv2
import numpy as np
import pytest

from onediff_jax.data.conditions import degradations, hed, maps
from onediff_jax.data.conditions import make as conditions
from onediff_jax.data.conditions.make import Condition, ConditionConfig
from onediff_jax.errors import InputError

DRAWN, FIXED = ConditionConfig("drawn"), ConditionConfig("fixed")
CLASSES = ("sphere", "box", "cone", "torus", "capsule")
MAKERS = ("blurred", "low_resolution", "masked", "canny", "hed", "depth", "pose", "semantic")
MAKERS += ("boxes",)


def record(names: tuple[str, ...] = ("sphere", "box", "sphere")) -> dict:
    """Instances 1, 2, ... as stripes with background between them; one person."""
    rng = np.random.default_rng(0)
    instances = np.zeros((12, 4 * len(names) + 2), np.uint8)
    for i in range(len(names)):
        instances[2:9, 4 * i + 1 : 4 * i + 4] = i + 1
    image = rng.integers(1, 256, (*instances.shape, 3), dtype=np.uint8)
    depth = rng.uniform(1, 9, instances.shape)
    keypoints = np.concatenate([rng.uniform(1, 12, (1, 17, 2)), np.full((1, 17, 1), 2.0)], -1)
    return dict(image=image, depth=depth, instances=instances, names=names, keypoints=keypoints)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def config(monkeypatch) -> ConditionConfig:
    """Settings that name a network for soft edges, which is a small one of random weights."""
    drawn = {name: rng(1).normal(0, 0.3, shape) for name, shape in small_shapes(monkeypatch)}
    weights = {name: value.astype(np.float32) for name, value in drawn.items()}
    monkeypatch.setattr(conditions, "weights_in", lambda file: {"a file": weights}[file])
    return ConditionConfig(hed="a file")


def small_shapes(monkeypatch):
    monkeypatch.setattr(hed, "_WIDTHS", (2, 2, 2, 2, 2))
    return hed._shapes().items()


@pytest.mark.parametrize("name", MAKERS)
def test_every_condition_is_an_image_of_its_record_s_size_and_a_function_of_its_generator(
    config, name
):
    make = getattr(conditions, name)
    given, same = record(), record()
    for field in ("image", "depth", "instances", "keypoints"):
        given[field].flags.writeable = False  # as data sets may give them
    made = make(given, rng(3), config)
    assert isinstance(made, Condition) and made.image.dtype == np.uint8
    assert made.image.shape == given["image"].shape and made.image.any()
    again = make(given, rng(3), config)
    np.testing.assert_array_equal(again.image, made.image)
    assert again.words == made.words
    drawn = {(made.image.tobytes(), made.words)}
    more = [make(given, rng(seed), config) for seed in range(4, 9)]
    drawn |= {(m.image.tobytes(), m.words) for m in more}
    assert (len(drawn) > 1) == (name not in ("hed", "depth", "pose"))
    for field, value in same.items():
        np.testing.assert_array_equal(given[field], value)


def test_depth_maps_and_rectangles_are_those_that_the_published_scores_were_measured_on():
    digest = hashlib.sha256()
    for seed in range(12):
        draw = rng(1000 + seed)
        height, width = (int(draw.integers(8, 70)) for _ in range(2))
        count = int(draw.integers(0, 21))
        given = dict(
            image=draw.integers(0, 256, (height, width, 3), dtype=np.uint8),
            depth=draw.uniform(0.5, 9, (height, width)).astype(np.float32),
            instances=draw.integers(0, count + 1, (height, width)).astype(np.uint8),
            names=tuple(f"thing {i % max(1, count - 3)}" for i in range(count)),
        )
        for config in (DRAWN, FIXED):
            for make in (conditions.depth, conditions.semantic, conditions.masked):
                generator = rng(seed)
                made = make(given, generator, config)
                digest.update(made.image.tobytes() + made.words.encode())
                digest.update(str(generator.integers(1 << 60)).encode())  # as much was drawn
    assert digest.hexdigest() == "1ec639365c2f9ecf29a6f141f785887bfaecb7c592f909e68e68163f771fe05e"


@pytest.fixture
def drawn(monkeypatch) -> dict[str, list]:
    """Arguments with which the images were harmed, by function, in the order of the calls."""
    calls: dict[str, list] = {}

    def noted(module, name):
        def call(image, *arguments):
            calls.setdefault(name, []).append(arguments)
            return image

        monkeypatch.setattr(module, name, call)

    for name in ("gaussian_blur", "motion_blur", "jpeg", "downscale", "canny_edges"):
        noted(degradations, name)
    return calls


def image(height: int = 32, width: int = 48) -> dict:
    return {"image": rng().integers(0, 256, (height, width, 3), dtype=np.uint8)}


def test_half_of_the_blurs_are_gaussian_and_half_of_all_are_compressed(drawn):
    given = image(128, 192)
    for seed in range(400):
        conditions.blurred(given, rng(seed), DRAWN)
    sigmas = np.array(drawn["gaussian_blur"])[:, 0]
    lengths, angles = np.array(drawn["motion_blur"]).T
    qualities = np.array(drawn["jpeg"])[:, 0]
    assert 160 < len(sigmas) < 240 and len(lengths) == 400 - len(sigmas)
    assert 1 <= sigmas.min() < 1.05 and 2.85 < sigmas.max() <= 3  # 1 + 128 / 64
    assert np.median(sigmas) == pytest.approx(math.sqrt(3), rel=0.1)
    assert 3 <= lengths.min() < 3.2 and 10.8 < lengths.max() <= 11  # 3 + 128 / 16
    assert 0 <= angles.min() < 0.1 and 3.04 < angles.max() < math.pi
    assert 160 < len(qualities) < 240 and (qualities.min(), qualities.max()) == (30, 95)


def test_resolution_is_lost_twofold_to_eightfold_and_half_of_it_compressed(drawn):
    for seed in range(400):
        conditions.low_resolution(image(), rng(seed), DRAWN)
    factors = np.array(drawn["downscale"])[:, 0]
    assert 2 <= factors.min() < 2.05 and 7.8 < factors.max() <= 8
    assert np.median(factors) == pytest.approx(4, rel=0.1)
    assert 160 < len(drawn["jpeg"]) < 240


def test_a_low_resolution_is_the_small_image_enlarged(monkeypatch):
    monkeypatch.setattr(conditions, "compressed", lambda image, rng: image)
    given, generator = image(), rng(4)
    factor = 2 * 4 ** rng(4).random()
    small = degradations.downscale(given["image"], factor)
    expected = degradations.upscale(small, 32, 48)
    found = conditions.low_resolution(given, generator, DRAWN).image
    np.testing.assert_array_equal(found, expected)


def test_canny_s_thresholds_are_drawn_or_automatic_as_set(drawn):
    for seed in range(300):
        conditions.canny(image(), rng(seed), DRAWN)
    low, high = np.array(drawn["canny_edges"]).T
    assert 100 <= high.min() < 103 and 297 < high.max() <= 300
    assert 0.3 <= (low / high).min() < 0.31 and 0.59 < (low / high).max() <= 0.6
    drawn.clear()
    automatic = ConditionConfig(canny_thresholds="automatic")
    for seed in range(3):
        conditions.canny(image(), rng(seed), automatic)
    assert set(drawn["canny_edges"]) == {degradations.automatic_thresholds(image()["image"])}


def test_a_masked_image_is_black_in_the_hole_and_itself_elsewhere():
    image = record()["image"]  # which has no black
    masked, words = conditions.masked(record(), rng(3), DRAWN)
    black = (masked == 0).all(-1)
    np.testing.assert_array_equal(black, degradations.rectangular_hole(*image.shape[:2], rng(3)))
    np.testing.assert_array_equal(masked[~black], image[~black])
    assert words == "" and black.any()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_free_form_holes_is_as_set(share):
    config = ConditionConfig(free_form_holes=share)
    given = {"image": np.full((48, 48, 3), 255, np.uint8)}
    holes = [conditions.masked(given, rng(i), config).image[..., 0] == 0 for i in range(200)]
    rectangles = [h.sum() == h.any(0).sum() * h.any(1).sum() for h in holes]
    assert 1 - np.mean(rectangles) == pytest.approx(share, abs=0.1 if 0 < share < 1 else 0.02)


def test_soft_edges_are_grey_from_the_network_that_is_set(config):
    given = image(20, 30)
    found = conditions.hed(given, rng(), config).image
    probability = hed.soft_edges(given["image"], conditions.weights_in("a file"))
    np.testing.assert_array_equal(found[..., 1], np.round(255 * probability))
    assert (found == found[..., :1]).all() and np.ptp(found) > 5


def test_without_a_network_soft_edges_say_which_command_brings_it():
    with pytest.raises(InputError, match=r"data\.conditions\.hed is empty.*/fetch_hed\.py"):
        conditions.hed(image(), rng(), DRAWN)


def legend(words: str, kind: str) -> dict[str, tuple[int, ...]]:
    """Colors by class, as the words say them."""
    found = {}
    for entry in filter(None, words.removesuffix(">").split("> ")):
        code, name = entry.split(f" {kind}: ")
        color, called = code.removeprefix("<#").split(" ")
        assert maps.COLORS[called] == color and name not in found
        found[name] = tuple(bytes.fromhex(color))
    return found


@pytest.mark.parametrize("config", [DRAWN, FIXED])
@pytest.mark.parametrize("names", [(), ("box",), ("sphere", "box", "sphere"), CLASSES])
def test_the_map_shows_every_instance_in_the_color_that_the_legend_names(config, names):
    given = record(names)
    shown, words = conditions.semantic(given, rng(), config)
    colors = legend(words, "mask")
    assert set(colors) == set(names)
    for number, name in enumerate(names, start=1):
        assert (shown[given["instances"] == number] == colors[name]).all()
    assert (shown[given["instances"] == 0] == 0).all()


@pytest.mark.parametrize("config", [DRAWN, FIXED])
@pytest.mark.parametrize("names", [(), ("box",), ("sphere", "box", "sphere"), CLASSES])
def test_boxes_come_from_the_record_or_from_its_instances_with_their_legend(config, names):
    given = record(names)
    shown, words = conditions.boxes(given, rng(), config)
    colors = legend(words, "boundingbox")
    assert set(colors) == set(names)
    for number, name in enumerate(names, start=1):
        assert (shown[given["instances"] == number] == colors[name]).all()
    assert (shown[given["instances"] == 0] == 0).all()  # stripes are their own boxes
    left = np.arange(len(names)) * 4.0 + 1
    stripes = np.stack([left, np.full_like(left, 2), left + 3, np.full_like(left, 9)], -1)
    del given["instances"]
    again = conditions.boxes(given | {"boxes": stripes}, rng(), config)
    np.testing.assert_array_equal(again.image, shown)
    assert again.words == words


def test_boxes_of_the_record_count_before_its_instances_and_hidden_instances_have_none():
    given = record() | {"boxes": np.array([[0.0, 0, 1, 1]] * 3)}
    assert conditions.boxes(given, rng(), FIXED).image.any(-1).sum() == 1
    hidden = record()
    hidden["instances"][hidden["instances"] == 2] = 0
    assert ": box>" not in conditions.boxes(hidden, rng(), FIXED).words
    assert "sphere" in conditions.boxes(hidden, rng(), FIXED).words


def test_map_colors_are_drawn_or_fixed_as_set():
    for make in (conditions.semantic, conditions.boxes):
        assert len({make(record(), rng(seed), DRAWN).words for seed in range(9)}) > 4
        assert len({make(record(), rng(seed), FIXED).words for seed in range(9)}) == 1


def test_nobody_is_a_black_image():
    given = record() | {"keypoints": np.zeros((0, 17, 3))}
    assert not conditions.pose(given, rng(), DRAWN).image.any()


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("map_colors", "random", "map_colors is 'random'"),
        ("canny_thresholds", "otsu", "canny_thresholds is 'otsu'"),
        ("free_form_holes", 1.5, "free_form_holes is 1.5"),
        ("free_form_holes", math.nan, "free_form_holes is nan"),
    ],
)
def test_a_setting_that_is_none_is_refused(setting, value, said):
    with pytest.raises(InputError, match=said):
        ConditionConfig(**{setting: value})


def test_opencv_takes_one_thread_where_the_loader_has_its_own():
    assert cv2.getNumThreads() == 1
