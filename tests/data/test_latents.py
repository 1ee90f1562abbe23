import numpy as np
import pytest

from onediff_jax.data.codecs import LinearCodec, fit, image_of, psnr
from onediff_jax.errors import InputError

FACTOR = 4
PIXELS = 3 * FACTOR**2


def images(count: int = 10, height: int = 24, width: int = 32) -> list[np.ndarray]:
    """Smooth images with a little noise, so that few components carry most of the variance."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    found = []
    for _ in range(count):
        down, along, phase = rng.uniform(-0.3, 0.3, (3, 3))
        wave = np.sin(rows[..., None] * down + columns[..., None] * along + 10 * phase)
        noise = rng.normal(0, 6, (height, width, 3))
        found.append(np.clip(128 + 90 * wave + noise, 0, 255).astype(np.uint8))
    return found


def matrix_of(views: list[np.ndarray]) -> np.ndarray:
    """Every block as a row, by hand: rows, columns, channels of the block in this order."""
    return np.array(
        [
            view[y : y + FACTOR, x : x + FACTOR].reshape(-1) / 127.5 - 1
            for view in views
            for y in range(0, view.shape[0], FACTOR)
            for x in range(0, view.shape[1], FACTOR)
        ]
    )


def encoded(codec: LinearCodec, views: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([codec.encode(view).reshape(-1, codec.channels) for view in views])


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("channels", [1, 3, 16])
def test_no_codec_of_as_many_channels_rebuilds_better(channels, whitening):
    views = images()
    codec = fit(views, FACTOR, channels, whitening)
    flat = matrix_of(views)
    mean = flat.mean(0)
    left, sizes, right = np.linalg.svd(flat - mean, full_matrices=False)
    best = (left[:, :channels] * sizes[:channels]) @ right[:channels] + mean
    found = matrix_of([127.5 * (codec.decode(codec.encode(view)) + 1) for view in views])
    np.testing.assert_allclose(found, best, atol=1e-4)
    error = np.square(found - flat).sum()
    np.testing.assert_allclose(error, np.square(sizes[channels:]).sum(), rtol=1e-4)


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_all_channels_rebuild_every_image_to_the_bit(whitening):
    codec = fit(images(), FACTOR, PIXELS, whitening)
    unseen = np.random.default_rng(1).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    for image in [*images(3), unseen]:
        pixels = codec.decode(codec.encode(image))
        np.testing.assert_allclose(pixels, image / 127.5 - 1, atol=1e-4)
        np.testing.assert_array_equal(image_of(pixels), image)


@pytest.mark.parametrize("whitening", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("channels", [4, 16])
def test_latents_have_mean_zero_and_mean_variance_one(channels, whitening):
    latents = encoded(fit(images(), FACTOR, channels, whitening), images())
    np.testing.assert_allclose(latents.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(latents.var(0).mean(), 1, atol=1e-3)
    together = np.cov(latents.T)
    np.testing.assert_allclose(together, np.diag(np.diag(together)), atol=1e-2)


def test_whitening_goes_from_natural_proportions_to_equal_variances():
    views = images()
    values = np.linalg.svd(matrix_of(views) - matrix_of(views).mean(0), compute_uv=False)[:8] ** 2
    for whitening in (0.0, 0.5, 1.0):
        found = encoded(fit(views, FACTOR, 8, whitening), views).var(0)
        expected = values ** (1 - whitening)
        np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-2)
    np.testing.assert_allclose(found, 1, atol=1e-2)


def test_encoding_what_was_decoded_gives_the_latents_back():
    codec = fit(images(), FACTOR, 6, 0.5)
    latents = codec.encode(images(1)[0])
    pixels = matrix_of([127.5 * (codec.decode(latents) + 1)])
    again = (pixels - codec.mean) @ codec.encoder
    np.testing.assert_allclose(again, latents.reshape(-1, 6), atol=1e-4)


def test_a_latent_sees_its_own_block_of_pixels_and_no_other():
    codec = fit(images(), FACTOR, 8, 0.0)
    image = images(1)[0]
    changed = image.copy()
    changed[5, 18] ^= 255  # block row 1, block column 4
    before, after = codec.encode(image), codec.encode(changed)
    assert before.shape == (24 // FACTOR, 32 // FACTOR, 8) and before.dtype == np.float32
    assert np.argwhere((before != after).any(-1)).tolist() == [[1, 4]]


def test_decoding_a_batch_decodes_each():
    codec = fit(images(), FACTOR, 5, 0.0)
    latents = np.stack([codec.encode(view) for view in images(6)])
    found = codec.decode(latents.reshape(2, 3, *latents.shape[1:]))
    for each, latent in zip(found.reshape(6, 24, 32, 3), latents, strict=True):
        np.testing.assert_allclose(each, codec.decode(latent), atol=1e-5)


def test_equal_images_give_equal_codecs_and_their_order_does_not_matter():
    codec, same = (fit(iter(images()), FACTOR, 12, 0.5) for _ in range(2))
    turned = fit(images()[::-1], FACTOR, 12, 0.5)
    for one, other, close in zip(codec, same, turned, strict=True):
        assert one.tobytes() == other.tobytes() and one.dtype == np.float32
        np.testing.assert_allclose(one, close, atol=2e-3)
    # An eigenvector's sign is arbitrary: ours has its largest entry positive.
    assert (codec.decoder[np.arange(12), np.abs(codec.decoder).argmax(1)] > 0).all()


def test_a_codec_says_what_its_arrays_are():
    codec = fit(images(), FACTOR, 7, 0.0)
    assert (codec.factor, codec.channels) == (FACTOR, 7)


def test_every_level_of_an_image_survives_the_way_to_pixels_and_back():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    np.testing.assert_array_equal(image_of(levels / np.float32(127.5) - 1), levels)
    beyond = np.array([[[-1.5, 0, 1.5]]], np.float32)
    assert image_of(beyond).tolist() == [[[0, 128, 255]]]


def test_psnr_is_its_formula_and_infinite_for_equal_images():
    image = np.full((8, 6, 3), 100, np.uint8)
    for difference in (1, 7, 100):
        other = image - np.uint8(difference)
        expected = 20 * np.log10(255 / difference)
        assert psnr(image, other) == pytest.approx(expected)
        assert psnr(other, image) == pytest.approx(expected)
    assert psnr(image, image) == float("inf")


def test_more_channels_than_a_block_has_numbers_are_refused():
    with pytest.raises(InputError, match=r"codec.channels is 49; blocks of 4 x 4 have only 48"):
        fit(images(2), FACTOR, PIXELS + 1, 0.0)
