import io

import numpy as np
import pytest
from PIL import Image

from onediff_jax.data.pictures import SPATIAL, grid_for, picture_in, png, resized, resized_record
from onediff_jax.errors import InputError

LANCZOS, NEAREST = Image.Resampling.LANCZOS, Image.Resampling.NEAREST


def drawn(height: int = 5, width: int = 7, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def saved(image: Image.Image, kind: str = "png", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# What a viewer shows of the pixels that a file with this orientation stores.
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_a_picture_is_turned_as_its_exif_says(orientation):
    stored = drawn()
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = picture_in(saved(Image.fromarray(stored), exif=exif))
    np.testing.assert_array_equal(found, TURNS[orientation](stored))


def test_transparency_lies_on_white():
    stored = drawn(channels=4)
    stored[0, :, 3], stored[1, :, 3], stored[2:, :, 3] = 0, 255, 64
    found = picture_in(saved(Image.fromarray(stored))).astype(float)
    assert (found[0] == 255).all()
    np.testing.assert_array_equal(found[1], stored[1, :, :3])
    share = stored[..., 3:] / 255
    expected = share * stored[..., :3] + (1 - share) * 255
    np.testing.assert_allclose(found, expected, atol=1)
    grey = Image.fromarray(stored[..., 0]).convert("LA")
    grey.putalpha(0)
    assert (picture_in(saved(grey)) == 255).all()


def test_sixteen_bits_keep_their_high_byte():
    levels = np.array([[0, 255, 256, 40_000], [51_200, 65_279, 65_280, 65_535]], np.uint16)
    for kind in ("png", "tiff"):
        found = picture_in(saved(Image.fromarray(levels), kind))
        np.testing.assert_array_equal(found, (levels // 256)[..., None].repeat(3, -1))


def test_grey_becomes_three_equal_channels():
    grey = drawn()[..., 0]
    np.testing.assert_array_equal(
        picture_in(saved(Image.fromarray(grey))), grey[..., None].repeat(3, -1)
    )
    black_and_white = Image.fromarray(grey).convert("1")
    found = picture_in(saved(black_and_white))
    np.testing.assert_array_equal(found[..., 0], 255 * np.asarray(black_and_white))


def test_a_palette_is_looked_up_and_its_transparent_entry_is_white():
    indices = np.arange(6, dtype=np.uint8).reshape(2, 3)
    image = Image.fromarray(indices)
    palette = drawn(1, 6)[0]
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(picture_in(saved(image)), palette[indices])
    expected = palette[indices]
    expected[1, 1] = 255
    np.testing.assert_array_equal(picture_in(saved(image, transparency=4)), expected)


def test_inks_become_light():
    inks = [(0, 0, 0, 0), (0, 255, 255, 0), (255, 0, 0, 0), (0, 0, 0, 255)]
    image = Image.new("CMYK", (4, 1))
    image.putdata(inks)
    found = picture_in(saved(image, "tiff"))
    assert found.tolist() == [[[255, 255, 255], [255, 0, 0], [0, 255, 255], [0, 0, 0]]]


def test_png_bytes_are_the_picture():
    np.testing.assert_array_equal(picture_in(png(drawn())), drawn())


WHOLE = saved(Image.fromarray(drawn()))


def test_a_missing_file_is_one_line_that_names_it(tmp_path):
    with pytest.raises(InputError, match=r"^There is no picture .*/absent\.png\.$"):
        picture_in(tmp_path / "absent.png")


@pytest.mark.parametrize(
    "content",
    [b"", b"no picture\nat all", WHOLE[:60], WHOLE[:11] + b"\5" + WHOLE[12:]],
    ids=["empty", "words", "cut", "short header"],
)
def test_an_unreadable_file_is_one_line_that_names_it(tmp_path, content):
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(
        InputError, match=r"^.*/broken\.png cannot be read as a picture: .+$"
    ) as refusal:
        picture_in(tmp_path / "broken.png")
    assert "\n" not in str(refusal.value)


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(InputError, match="cannot be read as a picture"):
        picture_in(tmp_path)


@pytest.mark.filterwarnings("ignore")  # of Pillow, about the broken files
@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "tiff", "webp"])
def test_wherever_a_file_ends_too_early_the_answer_is_the_same(kind):
    whole = saved(Image.fromarray(drawn(16, 16)), kind)
    for end in range(0, len(whole) - 30, 3):  # the last bytes may be dispensable
        with pytest.raises(InputError, match="^these bytes cannot be read as a picture"):
            picture_in(whole[:end])


@pytest.mark.parametrize(("height", "width"), [(40, 80), (80, 40), (40, 40), (60, 100)])
@pytest.mark.parametrize(("to_height", "to_width"), [(20, 20), (30, 20), (16, 32)])
def test_resizing_keeps_the_centre_and_the_proportions(height, width, to_height, to_width):
    rows, columns = np.mgrid[:height, :width] + 0.5
    across, down = columns - width / 2, rows - height / 2
    disk = (np.hypot(across, down) < 8)[..., None] * np.full(3, 255, np.uint8)
    found = resized(disk, to_height, to_width, LANCZOS)
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
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 20:60] = 255
    assert resized(picture, 20, 20, NEAREST).min() == 255
    assert resized(picture.swapaxes(0, 1).copy(), 20, 20, NEAREST).min() == 255
    assert resized(picture, 10, 20, NEAREST).min() == 0  # the same aspect: nothing is cut


def test_a_picture_of_the_right_size_is_left_alone():
    np.testing.assert_array_equal(resized(drawn(), 5, 7, LANCZOS), drawn())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_measurements_are_picked_and_never_mixed(dtype):
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 9, (30, 41)).astype(dtype)
    depth[rng.random(depth.shape) < 0.3] = np.inf
    instances = rng.choice(np.array([0, 3, 200], np.uint8), (30, 41))
    record = {"image": drawn(30, 41), "depth": depth, "instances": instances}
    record |= {"names": ("a", "b"), "caption": "words"}
    found = resized_record(record, 12, 20)
    assert {found[name].shape[:2] for name in SPATIAL} == {(12, 20)}
    assert set(np.unique(found["instances"])) == {0, 3, 200}
    assert np.isin(found["depth"].astype(np.float32), depth.astype(np.float32)).all()
    assert np.isinf(found["depth"]).any()
    assert found["instances"].dtype == np.uint8
    assert (found["names"], found["caption"]) == (("a", "b"), "words")


def test_maps_and_picture_of_a_record_are_cut_alike():
    instances = np.zeros((40, 90), np.uint8)
    instances[10:30, 31:71] = 1
    record = {"image": 255 * instances[..., None].repeat(3, -1), "instances": instances}
    record["depth"] = instances.astype(np.float32)
    found = resized_record(record, 20, 30)
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
        if 10 * rows * columns > 9 * tokens and max(rows, columns) <= 4 * min(rows, columns)
    ]
    for _ in range(20):
        height, width = (int(side) for side in np.exp(rng.uniform(np.log(100), np.log(500), 2)))
        rows, columns = grid_for(height, width, tokens)
        assert 0.9 * tokens < rows * columns <= tokens
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
