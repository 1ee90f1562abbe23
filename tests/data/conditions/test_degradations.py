import io
import math

import cv2
import numpy as np
import pytest
from PIL import Image

from onediff_jax.data.conditions import degradations


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def photograph(height: int = 96, width: int = 120) -> np.ndarray:
    """Smooth colors with some grain, as a photograph has."""
    y, x = np.mgrid[:height, :width] / 20
    waves = np.stack([np.sin(x + 2 * y), np.cos(2 * x - y), np.sin(x * y / 3)], -1)
    return np.clip(128 + 90 * waves + rng().normal(0, 6, waves.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("sigma", [0.8, 2.0, 5.3])
def test_a_gaussian_spreads_a_step_into_its_integral(sigma):
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 40:] = 200
    found = degradations.gaussian_blur(image, sigma)
    # Pixels are samples: the integral is a sum.
    weights = [math.exp(-(x**2) / (2 * sigma**2)) for x in range(-100, 101)]
    sums = np.cumsum(weights)[60:140] / sum(weights)
    expected = np.broadcast_to((200 * sums)[:, None], (40, 80, 3))
    np.testing.assert_allclose(found, expected, atol=1.5)
    assert found.dtype == np.uint8


def test_a_gaussian_spreads_a_delta_alike_in_both_directions():
    image = np.zeros((31, 31, 3), np.uint8)
    image[15, 15] = 255
    found = degradations.gaussian_blur(image, 1.5)
    y, x = np.mgrid[-15:16, -15:16]
    gaussian = np.exp(-(x**2 + y**2) / (2 * 1.5**2)) / (2 * math.pi * 1.5**2)
    np.testing.assert_allclose(found[..., 0], 255 * gaussian, atol=1)


@pytest.mark.parametrize("length", [3.0, 7.5, 20.0])
@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2, 2.5])
def test_a_motion_s_weights_add_up_to_one_and_lie_evenly_along_its_line(length, angle):
    kernel = degradations.motion_kernel(length, angle)
    assert kernel.sum() == pytest.approx(1) and (kernel >= 0).all()
    reach = len(kernel) // 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    assert abs((x * kernel).sum()) < 1e-9 and abs((y * kernel).sum()) < 1e-9
    along, across = (
        x * math.cos(angle) + y * math.sin(angle),
        y * math.cos(angle) - x * math.sin(angle),
    )
    # A line's variance, and up to a quarter more from sharing a point among pixels.
    even = length**2 / 12
    assert 0.99 * even < (along**2 * kernel).sum() < even + 0.26
    assert (across**2 * kernel).sum() < 0.26


def test_a_level_motion_is_a_box_and_angles_turn_from_x_to_y():
    kernel = degradations.motion_kernel(6.0, 0.0)
    middle = len(kernel) // 2
    assert np.delete(kernel, middle, 0).max() == 0
    np.testing.assert_allclose(kernel[middle, middle - 2 : middle + 3], 1 / 6, atol=1e-6)
    down_right = degradations.motion_kernel(9.0, math.pi / 4)
    assert np.trace(down_right) > 10 * np.trace(down_right[::-1] * (1 - np.eye(len(down_right))))


def test_a_motion_spreads_a_delta_into_its_weights():
    image = np.zeros((31, 31, 3), np.uint8)
    image[15, 15] = 255
    kernel = degradations.motion_kernel(9.0, 0.6)
    reach = len(kernel) // 2
    found = degradations.motion_blur(image, 9.0, 0.6)
    spread = found[15 - reach : 16 + reach, 15 - reach : 16 + reach, 1]
    np.testing.assert_allclose(spread, 255 * kernel, atol=1)
    assert found.astype(int).sum() == spread.astype(int).sum() * 3


@pytest.mark.parametrize("quality", [30, 60, 95])
def test_jpeg_is_pillow_s_jpeg(quality):
    image = photograph()
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=quality, subsampling="4:2:0")
    theirs = np.asarray(Image.open(file)).astype(int)
    ours = degradations.jpeg(image, quality).astype(int)
    assert np.abs(ours - theirs).mean() < 0.5
    assert np.abs(ours - image).mean() > 4 * np.abs(ours - theirs).mean()


def test_jpeg_of_lower_quality_loses_more():
    image = photograph()
    lost = [np.abs(degradations.jpeg(image, q).astype(int) - image).mean() for q in (95, 60, 20)]
    assert lost == sorted(lost) and lost[2] > 1.5 * lost[0]


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_downscaled_pixels_are_means_over_their_area(factor):
    image = photograph(factor * 10, factor * 14)
    blocks = image.reshape(10, factor, 14, factor, 3).mean((1, 3))
    found = degradations.downscale(image, float(factor))
    np.testing.assert_allclose(found, blocks, atol=0.51)


@pytest.mark.parametrize(
    ("size", "factor", "small"),
    [((96, 120), 8.0, (12, 15)), ((90, 61), 2.5, (36, 24)), ((3, 40), 8.0, (1, 5))],
)
def test_a_downscaled_image_has_its_sides_divided_and_never_none(size, factor, small):
    assert degradations.downscale(photograph(*size), factor).shape == (*small, 3)


def test_upscaling_keeps_a_ramp_a_ramp_and_goes_back_over_downscaling():
    ramp = np.repeat(np.linspace(20, 220, 26).round().astype(np.uint8)[None, :, None], 10, 0)
    ramp = np.repeat(ramp, 3, -1)
    found = degradations.upscale(ramp, 40, 104)
    assert found.shape == (40, 104, 3)
    centres = (np.arange(104) + 0.5) / 4 - 0.5
    inside = slice(8, -8)
    np.testing.assert_allclose(
        found[20, inside, 0], np.interp(centres, np.arange(26), ramp[0, :, 0])[inside], atol=1
    )
    smooth = degradations.gaussian_blur(photograph(), 4.0)
    back = degradations.upscale(degradations.downscale(smooth, 2.0), 96, 120)
    assert np.abs(back.astype(int) - smooth).mean() < 1


def test_one_color_stays_that_color_and_the_image_is_left_alone():
    plain = np.full((20, 24, 3), (200, 40, 90), np.uint8)
    plain.flags.writeable = False
    for found in (
        degradations.gaussian_blur(plain, 3.0),
        degradations.motion_blur(plain, 7.0, 0.5),
        degradations.jpeg(plain, 95),
        degradations.downscale(plain, 3.0),
        degradations.upscale(plain, 50, 60),
    ):
        np.testing.assert_allclose(found, np.broadcast_to(plain[0, 0], found.shape), atol=2)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (16, 40), (64, 64)])
def test_a_rectangle_takes_a_quarter_to_three_quarters_of_each_side(height, width):
    seen = np.zeros((height, width), bool)
    for seed in range(400):
        inside = degradations.rectangular_hole(height, width, rng(seed))
        assert inside.shape == (height, width)
        seen |= inside
        for axis, full in ((1, height), (0, width)):
            marked = np.flatnonzero(inside.any(axis))
            assert marked.size and np.ptp(marked) + 1 == marked.size
            assert max(1, 0.25 * full - 0.5) <= marked.size <= max(1, 0.75 * full + 0.5)
        assert inside.sum() == inside.any(0).sum() * inside.any(1).sum()
    assert seen.any(0).all() and seen.any(1).all()  # it may touch every edge


def test_rectangles_reach_both_bounds():
    sides = [degradations.rectangular_hole(40, 64, rng(seed)).any(1).sum() for seed in range(400)]
    assert min(sides) <= 11 and max(sides) >= 29


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (32, 32), (48, 96)])
def test_strokes_are_drawn_from_the_generator_and_reach_everywhere(height, width):
    holes = [degradations.free_form_hole(height, width, rng(seed)) for seed in range(100)]
    again = degradations.free_form_hole(height, width, rng(7))
    np.testing.assert_array_equal(again, holes[7])
    assert all(hole.shape == (height, width) and hole.any() for hole in holes)
    assert np.any(holes, axis=0).all()


def test_strokes_are_one_to_four_connected_lines_of_a_brush_and_never_most_of_the_image():
    holes = [degradations.free_form_hole(128, 128, rng(seed)) for seed in range(200)]
    pieces = [cv2.connectedComponents(hole.astype(np.uint8))[0] - 1 for hole in holes]
    assert set(pieces) == {1, 2, 3, 4}
    shares = np.array([hole.mean() for hole in holes])
    assert 0.1 < np.median(shares) < 0.3 and shares.max() < 0.7
    # The widest place fits a brush where strokes do not lie side by side: 5 to 15 % of a side.
    widths = [2 * cv2.distanceTransform(h.astype(np.uint8), cv2.DIST_L2, 5).max() for h in holes]
    assert 0.04 * 128 < np.min(widths) < 0.1 * 128
    boxes = [hole.sum() == hole.any(0).sum() * hole.any(1).sum() for hole in holes]
    assert not any(boxes)
