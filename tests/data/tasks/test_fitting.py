"""Records brought to a size: grids, crops, and what moves with the image."""

import numpy as np
import pytest
from PIL import Image
from tiny import orbit

from onediff_jax.data.batching.settings import DataConfig
from onediff_jax.data.tasks.fitting import (
    FILTERS,
    FULL,
    Fitting,
    crop_and_resize,
    crop_of,
    fit_record,
    grid_for,
    grids,
)
from onediff_jax.errors import BadRecord, InputError
from onediff_jax.ops.rays import rays_from_cameras


@pytest.mark.parametrize("tokens", [16, 64, 256, 1024, 4096])
def test_every_grid_fits_its_slot_and_fills_it(tokens):
    found = grids(tokens)
    for rows, columns in found:
        assert FULL * tokens <= rows * columns <= tokens
        assert 1 / 4 <= rows / columns <= 4
        assert (columns, rows) in found
    aspects = [np.log(rows / columns) for rows, columns in found]
    assert min(aspects) < -1.2 and max(aspects) > 1.2


def test_a_slot_that_no_grid_fills_takes_the_fullest():
    assert set(grids(10)) == {(3, 3), (2, 5), (5, 2)} or grids(10) == ((2, 5), (5, 2))
    assert all(rows * columns <= 7 for rows, columns in grids(7))


def test_an_image_goes_to_the_grid_of_its_aspect():
    assert grid_for(100, 100, 256) == (16, 16)
    rows, columns = grid_for(900, 1600, 256)
    assert abs(np.log(rows / columns * 1600 / 900)) < 0.06
    assert grid_for(1600, 900, 256) == (columns, rows)


def test_a_crop_is_central_and_has_the_aspect_asked_for():
    crop = crop_of((60, 100), 10, 10)
    assert crop == (20, 0, 60, 60)
    assert crop_of((60, 100), 30, 50) == (0, 0, 100, 60)


def marked(height: int, width: int, x: float, y: float) -> np.ndarray:
    """An image with a soft spot at a place."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    spot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)
    return np.repeat(spot[..., None], 3, -1).round().astype(np.uint8)


def spot_of(image: np.ndarray) -> np.ndarray:
    """Where the spot is: x, y."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    weight = image[..., 0].astype(float)
    return np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()


def test_places_move_as_the_image_does():
    x, y = 52.3, 31.8
    keypoints = np.zeros((1, 17, 3), np.float32)
    keypoints[0, 0], keypoints[0, 1] = (x, y, 2), (3.0, 31.8, 1)
    record = {
        "image": marked(64, 100, x, y),
        "boxes": np.array([[x - 5, y - 5, x + 5, y + 5], [0, 0, 10, 64]], np.float32),
        "names": ("spot", "edge"),
        "keypoints": keypoints,
    }
    moved = fit_record(record, 48, 48)
    assert moved["image"].shape == (48, 48, 3)
    place = spot_of(moved["image"])
    np.testing.assert_allclose(moved["keypoints"][0, 0, :2], place, atol=0.05)
    np.testing.assert_allclose(moved["boxes"].reshape(2, 2).mean(0), place, atol=0.05)
    assert moved["names"] == ("spot",)  # the other box is cut off
    assert moved["keypoints"][0, 0, 2] == 2
    assert not moved["keypoints"][0, 1].any()  # cut off, so absent
    np.testing.assert_array_equal(record["keypoints"], keypoints)


def test_maps_are_picked_not_mixed_and_stay_aligned():
    instances = np.zeros((64, 100), np.uint8)
    instances[:, 50:] = 7
    depth = np.where(instances > 0, np.float32(2), np.float32(9))
    image = np.repeat(instances[..., None] * 30, 3, -1)
    moved = fit_record({"image": image, "instances": instances, "depth": depth}, 32, 32)
    assert set(np.unique(moved["instances"])) == {0, 7} and moved["instances"].shape == (32, 32)
    np.testing.assert_array_equal(moved["depth"], np.where(moved["instances"] > 0, 2, 9))
    np.testing.assert_array_equal(moved["instances"] > 0, moved["image"][..., 0] > 105)


def test_a_ray_goes_through_the_same_place_after_crop_and_resize():
    camera = orbit(64, 100, np.random.default_rng(0))[1]
    frame = np.zeros((64, 100, 3), np.uint8)
    moved = fit_record({"frames": (frame,), "cameras": (camera,)}, 32, 32)["cameras"][0]
    np.testing.assert_array_equal(moved.camera_to_world, camera.camera_to_world)
    whole, part = rays_from_cameras(camera, (64, 100), 1), rays_from_cameras(moved, (32, 32), 1)
    # Every new pixel is 2 x 2 old ones, the first of which is 18 columns in.
    mean = whole[:, 18:82].reshape(32, 2, 32, 2, 6).mean((1, 3))
    np.testing.assert_allclose(
        mean / np.linalg.norm(mean[..., :3], axis=-1)[..., None], part, atol=2e-4
    )


def test_shrinking_averages_over_what_it_leaves_out():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    found = crop_and_resize(stripes, 16, 16)
    assert np.abs(found.astype(int) - 127).max() < 20  # without antialiasing: 0 or 255


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ((10, 10), (32, 32), "image is 10 x 10; views of 32 x 32 need an image at least 0.5"),
        ((20, 400), (32, 32), "image is 20 x 400; cut to the aspect of 32 x 32 it would lose more"),
    ],
)
def test_an_image_that_is_too_small_or_too_long_is_a_fault(shape, size, message):
    with pytest.raises(BadRecord, match=message):
        fit_record({"image": np.zeros((*shape, 3), np.uint8)}, *size)


def test_small_images_are_enlarged_as_far_as_the_setting_lets_them():
    record = {"image": marked(10, 10, 4, 6), "frames": (marked(10, 12, 4, 6),)}
    for enlarge, size in ((2.0, 20), (3.5, 35), (1.0, 10), (0.5, 5)):
        found = fit_record(record, size, size, Fitting(enlarge=enlarge))
        assert found["image"].shape == found["frames"][0].shape == (size, size, 3)
        message = (
            rf"image is 10 x 10; views of {size + 1} x {size + 1} .* data.enlarge is {enlarge:g}"
        )
        with pytest.raises(BadRecord, match=message):
            fit_record(record, size + 1, size + 1, Fitting(enlarge=enlarge))


@pytest.mark.parametrize("name", FILTERS)
def test_images_are_resized_by_the_filter_that_is_set(name):
    views = {"canny": noise()}
    record = {"image": noise(), "references": (noise(),), "pictures": views}
    height, width = 4, 4
    found = fit_record(record, height, width, Fitting(filter=name))
    crop = crop_of(noise().shape[:2], height, width)
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    witness = Image.fromarray(noise()).resize((width, height), getattr(Image, name.upper()), box)
    for image in (found["image"], found["references"][0], found["pictures"]["canny"]):
        np.testing.assert_array_equal(image, witness)
    others = {fit_record(record, 4, 4, Fitting(filter=n))["image"].tobytes() for n in FILTERS}
    assert len(others) == len(FILTERS)


def test_settings_of_fitting_are_those_of_the_data():
    for name, value in (("enlarge", 0.0), ("filter", "cubic")):
        with pytest.raises(InputError, match=f"{name} is {value!r}"):
            DataConfig(**{name: value})
    assert DataConfig(aspects="square", enlarge=3.0).fitting == Fitting(True, 3.0)


NEAREST, LANCZOS = Image.Resampling.NEAREST, Image.Resampling.LANCZOS


def noise(height: int = 5, width: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(40, 80), (80, 40), (40, 40), (60, 100)])
@pytest.mark.parametrize(("to_height", "to_width"), [(20, 20), (30, 20), (16, 32)])
def test_resizing_keeps_the_centre_and_the_proportions(height, width, to_height, to_width):
    rows, columns = np.mgrid[:height, :width] + 0.5
    across, down = columns - width / 2, rows - height / 2
    disk = (np.hypot(across, down) < 8)[..., None] * np.full(3, 255, np.uint8)
    found = crop_and_resize(disk, to_height, to_width, LANCZOS)
    assert found.shape == (to_height, to_width, 3) and found.dtype == np.uint8
    np.testing.assert_allclose(found * 1.0, found[::-1, ::-1], atol=1)  # still at the centre
    weight = found[..., 0] / 255
    rows, columns = np.mgrid[:to_height, :to_width] + 0.5
    spread = [
        (weight * np.square(axis - full / 2)).sum() / weight.sum()
        for axis, full in ((rows, to_height), (columns, to_width))
    ]
    np.testing.assert_allclose(spread[0], spread[1], rtol=0.03)  # still round
    scale = max(to_height / height, to_width / width)  # as large as the cut allows
    np.testing.assert_allclose(weight.sum(), np.pi * (8 * scale) ** 2, rtol=0.05)


def test_resizing_cuts_what_lies_outside_the_centre():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 20:60] = 255
    assert crop_and_resize(image, 20, 20, NEAREST).min() == 255
    assert crop_and_resize(image.swapaxes(0, 1).copy(), 20, 20, NEAREST).min() == 255
    assert crop_and_resize(image, 10, 20, NEAREST).min() == 0  # the same aspect: nothing is cut


def test_an_image_of_the_right_size_is_left_alone():
    np.testing.assert_array_equal(crop_and_resize(noise(), 5, 7, LANCZOS), noise())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_measurements_are_picked_and_never_mixed(dtype):
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 9, (30, 41)).astype(dtype)
    depth[rng.random(depth.shape) < 0.3] = np.inf
    instances = rng.choice(np.array([0, 3, 200], np.uint8), (30, 41))
    record = {"image": noise(30, 41), "depth": depth, "instances": instances}
    record |= {"names": ("a", "b"), "caption": "words"}
    found = fit_record(record, 12, 20)
    assert {found[name].shape[:2] for name in ("image", "depth", "instances")} == {(12, 20)}
    assert set(np.unique(found["instances"])) == {0, 3, 200}
    assert np.isin(found["depth"].astype(np.float32), depth.astype(np.float32)).all()
    assert np.isinf(found["depth"]).any()
    assert found["instances"].dtype == np.uint8
    assert (found["names"], found["caption"]) == (("a", "b"), "words")


def test_maps_and_image_of_a_record_are_cut_alike():
    instances = np.zeros((40, 90), np.uint8)
    instances[10:30, 31:71] = 1
    record = {"image": 255 * instances[..., None].repeat(3, -1), "instances": instances}
    record["depth"] = instances.astype(np.float32)
    found = fit_record(record, 20, 30)
    np.testing.assert_array_equal(found["image"][..., 0] > 127, found["instances"] == 1)
    np.testing.assert_array_equal(found["depth"], found["instances"])


def aspect_error(grid: tuple[int, int], height: float, width: float) -> float:
    return abs(np.log(grid[0] / grid[1]) - np.log(height / width))


@pytest.mark.parametrize("tokens", [16, 64, 256, 1024])
def test_a_grid_fits_fills_and_has_the_nearest_aspect(tokens):
    rng = np.random.default_rng(tokens)
    # All grids that are full one way, with enough tokens and sides at most 1 : 4.
    eligible = [
        (rows, columns)
        for rows in range(1, tokens + 1)
        for columns in range(1, tokens // rows + 1)
        if (rows + 1) * columns > tokens or rows * (columns + 1) > tokens
        if rows * columns >= FULL * tokens and max(rows, columns) <= 4 * min(rows, columns)
    ]
    for _ in range(20):
        height, width = (int(side) for side in np.exp(rng.uniform(np.log(100), np.log(500), 2)))
        rows, columns = grid_for(height, width, tokens)
        assert FULL * tokens <= rows * columns <= tokens
        least = min(aspect_error(grid, height, width) for grid in eligible)
        assert aspect_error((rows, columns), height, width) == pytest.approx(least)
        turned = grid_for(width, height, tokens)
        assert aspect_error(turned, width, height) == pytest.approx(least)


@pytest.mark.parametrize("tokens", [1, 4, 16, 64, 256, 1024])
def test_a_square_gets_a_full_square(tokens):
    assert grid_for(333, 333, tokens) == (tokens**0.5, tokens**0.5)


@pytest.mark.parametrize("tokens", [2, 3, 5, 7, 11, 13])
def test_every_number_of_tokens_has_a_grid(tokens):
    for height, width in ((10, 30), (20, 20), (300, 1)):
        rows, columns = grid_for(height, width, tokens)
        assert rows * columns <= tokens and max(rows, columns) <= 4 * min(rows, columns)
