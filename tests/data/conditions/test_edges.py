import numpy as np
import pytest

from onediff_jax.data.conditions import degradations


def step(grey: int, height: int = 20, width: int = 30, column: int = 15) -> np.ndarray:
    """Black left of a column, grey from there on."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, column:] = grey
    return image


@pytest.mark.parametrize("grey", [30, 60, 200])
def test_a_step_is_one_white_column_beside_it_just_where_four_times_its_height_is_enough(grey):
    found = degradations.canny_edges(step(grey), 2.0 * grey, 4.0 * grey - 1)
    assert found.dtype == np.uint8 and found.shape == (20, 30, 3)
    assert set(np.unique(found)) == {0, 255} and (found == found[..., :1]).all()
    columns = np.flatnonzero(found[..., 0].all(0))
    assert len(columns) == 1 and columns[0] in (14, 15)
    assert (np.delete(found, columns, 1) == 0).all()
    assert (degradations.canny_edges(step(grey), 2.0 * grey, 4.0 * grey) == 0).all()


def test_a_weak_edge_counts_where_it_goes_on_from_a_strong_one():
    weak = step(40)
    strong_above = weak.copy()
    strong_above[:6, 15:] = 200
    assert (degradations.canny_edges(weak, 100.0, 400.0) == 0).all()
    found = degradations.canny_edges(strong_above, 100.0, 400.0)[..., 0]
    assert found[10:, 14:16].any(1).all()  # the weak part, to the end
    assert not degradations.canny_edges(strong_above, 200.0, 400.0)[10:].any()


def test_grey_is_luma_of_red_green_and_blue():
    colors = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    assert degradations.grey(colors).tolist() == [[76, 150, 29, 255]]  # 0.299, 0.587, 0.114


def otsu(values: np.ndarray) -> float:
    """The threshold of the greatest variance between the values up to it and those above it."""

    def between(threshold):
        low, high = values[values <= threshold], values[values > threshold]
        return low.size * high.size * (low.mean() - high.mean()) ** 2 if high.size else -1.0

    return max(np.unique(values).tolist(), key=between)


def test_automatic_thresholds_are_half_of_otsu_s_and_otsu_s():
    rng = np.random.default_rng(2)
    image = np.clip(step(120).astype(int) + rng.integers(0, 12, (20, 30, 1)), 0, 255)
    low, high = degradations.automatic_thresholds(image.astype(np.uint8))
    grey = np.pad(image[..., 0], 1, mode="reflect").astype(int)
    dx = sum(w * (grey[i : i + 20, 2:] - grey[i : i + 20, :-2]) for i, w in enumerate((1, 2, 1)))
    dy = sum(w * (grey[2:, j : j + 30] - grey[:-2, j : j + 30]) for j, w in enumerate((1, 2, 1)))
    assert high == otsu(np.abs(dx) + np.abs(dy)) and low == high / 2


def test_automatic_thresholds_find_the_edge_and_not_the_grain_bright_or_dim():
    rng = np.random.default_rng(2)
    for grey in (40, 200):
        image = step(grey).astype(int) + rng.integers(0, grey // 20, (20, 30, 1))
        image = np.clip(image, 0, 255).astype(np.uint8)
        found = degradations.canny_edges(image, *degradations.automatic_thresholds(image))[..., 0]
        assert found[:, 14:16].any(1).all()
        assert np.delete(found, range(12, 18), 1).mean() < 0.03 * 255


def test_one_color_has_no_edges():
    plain = np.full((9, 9, 3), 77, np.uint8)
    assert not degradations.canny_edges(plain, *degradations.automatic_thresholds(plain)).any()
