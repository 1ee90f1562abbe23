import io

import numpy as np
import pytest
from PIL import Image

from onediff_jax.data.images import decode_image, image_in, png
from onediff_jax.errors import InputError


def drawn(height: int = 5, width: int = 7, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def saved(image: Image.Image, kind: str = "png", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(data: bytes) -> np.ndarray:
    return decode_image(data, "these bytes")


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
def test_an_image_is_turned_as_its_exif_says(orientation):
    stored = drawn()
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = read(saved(Image.fromarray(stored), exif=exif))
    np.testing.assert_array_equal(found, TURNS[orientation](stored))


def test_transparency_lies_on_white():
    stored = drawn(channels=4)
    stored[0, :, 3], stored[1, :, 3], stored[2:, :, 3] = 0, 255, 64
    found = read(saved(Image.fromarray(stored))).astype(float)
    assert (found[0] == 255).all()
    np.testing.assert_array_equal(found[1], stored[1, :, :3])
    share = stored[..., 3:] / 255
    expected = share * stored[..., :3] + (1 - share) * 255
    np.testing.assert_allclose(found, expected, atol=1)
    grey = Image.fromarray(stored[..., 0]).convert("LA")
    grey.putalpha(0)
    assert (read(saved(grey)) == 255).all()


def test_sixteen_bits_keep_their_high_byte():
    levels = np.array([[0, 255, 256, 40_000], [51_200, 65_279, 65_280, 65_535]], np.uint16)
    for kind in ("png", "tiff"):
        found = read(saved(Image.fromarray(levels), kind))
        np.testing.assert_array_equal(found, (levels // 256)[..., None].repeat(3, -1))


def test_grey_becomes_three_equal_channels():
    grey = drawn()[..., 0]
    np.testing.assert_array_equal(read(saved(Image.fromarray(grey))), grey[..., None].repeat(3, -1))
    black_and_white = Image.fromarray(grey).convert("1")
    found = read(saved(black_and_white))
    np.testing.assert_array_equal(found[..., 0], 255 * np.asarray(black_and_white))


def test_a_palette_is_looked_up_and_its_transparent_entry_is_white():
    indices = np.arange(6, dtype=np.uint8).reshape(2, 3)
    image = Image.fromarray(indices)
    palette = drawn(1, 6)[0]
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(read(saved(image)), palette[indices])
    expected = palette[indices]
    expected[1, 1] = 255
    np.testing.assert_array_equal(read(saved(image, transparency=4)), expected)


def test_inks_become_light():
    inks = [(0, 0, 0, 0), (0, 255, 255, 0), (255, 0, 0, 0), (0, 0, 0, 255)]
    image = Image.new("CMYK", (4, 1))
    image.putdata(inks)
    found = read(saved(image, "tiff"))
    assert found.tolist() == [[[255, 255, 255], [255, 0, 0], [0, 255, 255], [0, 0, 0]]]


def test_png_bytes_are_the_image():
    np.testing.assert_array_equal(read(png(drawn())), drawn())


WHOLE = saved(Image.fromarray(drawn()))


def test_a_missing_file_is_one_line_that_names_it(tmp_path):
    with pytest.raises(
        InputError, match=r"^There is no image .*/absent\.png: No such file or directory\.$"
    ):
        image_in(tmp_path / "absent.png")


@pytest.mark.parametrize(
    "content",
    [b"", b"no picture\nat all", WHOLE[:60], WHOLE[:11] + b"\5" + WHOLE[12:]],
    ids=["empty", "words", "cut", "short header"],
)
def test_an_unreadable_file_is_one_line_that_names_it(tmp_path, content):
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(
        InputError, match=r"^.*/broken\.png cannot be read as an image: .+$"
    ) as refusal:
        image_in(tmp_path / "broken.png")
    assert "\n" not in str(refusal.value)


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(InputError, match="There is no image .*: Is a directory"):
        image_in(tmp_path)


@pytest.mark.filterwarnings("ignore")  # of Pillow, about the broken files
@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "tiff", "webp"])
def test_wherever_a_file_ends_too_early_the_answer_is_the_same(kind):
    whole = saved(Image.fromarray(drawn(16, 16)), kind)
    for end in range(0, len(whole) - 30, 3):  # the last bytes may be dispensable
        with pytest.raises(InputError, match="^these bytes cannot be read as an image"):
            read(whole[:end])
