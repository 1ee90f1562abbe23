import numpy as np
import pytest

from onediff_jax.data.conditions.maps import depth_image
from onediff_jax.data.scenes.objects import PALETTE
from onediff_jax.data.scenes.source import SceneRecords
from onediff_jax.evaluate import scores
from onediff_jax.evaluate.scenes import CLASSES, classes_of, named_in

RNG = np.random.default_rng(0)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.round(values).astype(np.uint8)[..., None], 3, -1)


def test_depth_from_its_own_image_is_exact_up_to_grey_levels_and_any_scale_and_shift():
    depth = RNG.uniform(1, 5, (16, 16)).astype(np.float32)
    exact = scores.depth_score(depth_image(depth), depth, far=10.0)
    assert exact.abs_rel < 0.01 and exact.delta1 == 1
    dimmer = depth_image(depth) // 2 + 20
    assert scores.depth_score(dimmer, depth, far=10.0).abs_rel < 0.02


def test_depth_of_a_constant_image_is_scored_by_hand():
    depth = np.array([[1.0, 1.0], [2.0, 20.0]], np.float32)
    score = scores.depth_score(grey(np.full((2, 2), 100.0)), depth, far=20.0)
    constant = 1 / np.mean([1, 1, 0.5])  # the best constant disparity; the far pixel does not count
    errors = [abs(constant - 1) / 1] * 2 + [abs(constant - 2) / 2]
    assert score.abs_rel == pytest.approx(np.mean(errors), rel=1e-5)
    assert score.delta1 == pytest.approx(2 / 3)


def test_mean_iou_is_that_of_sets_of_pixels():
    truth, predicted = RNG.integers(0, 3, (2, 8, 8))
    found = scores.mean_iou(scores.confusion(predicted, truth, 3))
    expected = [
        ((truth == k) & (predicted == k)).sum() / ((truth == k) | (predicted == k)).sum()
        for k in range(3)
    ]
    assert found == pytest.approx(np.mean(expected))


def test_a_pixel_takes_the_nearest_color():
    palette = [(0, 0, 0), (255, 0, 0), (0, 255, 0)]
    image = np.array([[[10, 20, 0], [200, 60, 10], [90, 200, 0]]], np.uint8)
    assert scores.nearest_color(image, palette).tolist() == [[0, 1, 2]]


def test_psnr_counts_the_inside_alone():
    truth = RNG.integers(0, 200, (8, 8, 3)).astype(np.uint8)
    inside = np.zeros((8, 8), bool)
    inside[2:4] = True
    image = np.where(inside[..., None], truth + 10, 255 - truth).astype(np.uint8)
    assert scores.psnr_inside(image, truth, inside) == pytest.approx(20 * np.log10(25.5))
    assert scores.psnr_inside(truth, truth, inside) == pytest.approx(60)


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    found, named = [{1, 2, 3}, {4}], [{1, 2}, {5, 6}]
    precision, recall = 2 / 4, 2 / 4
    assert scores.f1(found, named) == pytest.approx(2 / (1 / precision + 1 / recall))
    assert scores.f1(named, named) == 1


def test_hue_and_saturation_are_those_of_the_standard_library():
    import colorsys

    image = RNG.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    hue, saturation = scores.hue_and_saturation(image)
    for pixel, h, s in zip(image.reshape(-1, 3), hue.ravel(), saturation.ravel(), strict=True):
        expected = colorsys.rgb_to_hsv(*(pixel / 255))
        assert (h / 360, s) == pytest.approx(expected[:2], abs=1e-6)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    from onediff_jax.data.scenes.source import Scenes

    path = tmp_path_factory.mktemp("scenes") / "scenes"
    return Scenes(path=str(path), size=32, train=2, validation=60).open("validation")


def test_the_detector_finds_what_the_captions_of_true_scenes_name(drawn: SceneRecords):
    records = [drawn[i] for i in range(len(drawn))]
    found = [scores.detected_colors(record["image"], PALETTE) for record in records]
    named = [named_in(record) for record in records]
    assert scores.f1(found, named) > 0.97
    assert scores.f1(found, named[1:] + named[:1]) < 0.3


def test_the_detector_finds_nothing_on_plain_ground():
    plain = np.full((32, 32, 3), (150, 160, 140), np.uint8)
    assert scores.detected_colors(plain, PALETTE) == set()


def test_classes_of_a_scene_are_its_instances_shapes(drawn: SceneRecords):
    record = drawn[0]
    classes = classes_of(record)
    assert (classes[record["instances"] == 0] == 0).all()
    for i, name in enumerate(record["names"], start=1):
        owned = classes[record["instances"] == i]
        assert (owned == CLASSES.index(name)).all() and owned.size
