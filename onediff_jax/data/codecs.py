"""Codecs between images and latents, and the linear one: principal components of square blocks.

It needs no download and has the real latent's shape: an image of H x W becomes H/f x W/f latents
of c channels. The components are fitted in closed form to the views that a run trains on.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from einops import rearrange
from jaxtyping import Float

from onediff_jax.data.example import RGB
from onediff_jax.errors import InputError


@runtime_checkable
class Codec(Protocol):
    """What sampling and evaluation need of any codec; latents are normalised."""

    @property
    def factor(self) -> int:
        """Pixels along each side of a latent."""

    @property
    def channels(self) -> int:
        """Channels of a latent."""

    def encode(self, image: RGB) -> Float[np.ndarray, "H W c"]:
        """Latents of an image whose sides the factor divides."""

    def decode(
        self, latents: Float[np.ndarray, "*batch H W c"]
    ) -> Float[np.ndarray, "*batch h w 3"]:
        """Pixels near [-1, 1]."""


class DeviceCodec(NamedTuple):
    """Stands for a codec that runs on the accelerator: rows carry images as pixels for it."""

    factor: int  # pixels along each side of a latent
    channels: int  # of a latent


class LinearCodec(NamedTuple):
    """latent = (block - mean) @ encoder; block = latent @ decoder + mean.

    Latents have variance near 1.
    """

    mean: Float[np.ndarray, " pixels"]
    encoder: Float[np.ndarray, "pixels c"]
    decoder: Float[np.ndarray, "c pixels"]

    @property
    def factor(self) -> int:
        """Pixels along each side of a latent."""
        return round((len(self.mean) / 3) ** 0.5)

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self.encoder.shape[1]

    def encode(self, image: RGB) -> Float[np.ndarray, "H W c"]:
        """Normalised latents of an image whose sides the factor divides."""
        return (blocks(image, self.factor) - self.mean) @ self.encoder

    def decode(
        self, latents: Float[np.ndarray, "*batch H W c"]
    ) -> Float[np.ndarray, "*batch h w 3"]:
        """Pixels in [-1, 1]: the inverse of `encode`, as far as c components reach.

        Nothing is clipped: latents can lead beyond that range.
        """
        pixels = latents @ self.decoder + self.mean
        return rearrange(
            pixels, "... H W (i j c) -> ... (H i) (W j) c", i=self.factor, j=self.factor
        )


def blocks(image: RGB, factor: int) -> Float[np.ndarray, "H W pixels"]:
    """Square blocks of an image, in [-1, 1]."""
    pixels = image.astype(np.float32) / 127.5 - 1
    return rearrange(pixels, "(H i) (W j) c -> H W (i j c)", i=factor, j=factor)


def image_of(pixels: Float[np.ndarray, "*batch h w 3"]) -> np.ndarray:
    """uint8 images of pixels in [-1, 1]; what lies outside is cut."""
    return np.round(127.5 * (np.clip(pixels, -1, 1) + 1)).astype(np.uint8)


def fit(images: Iterable[RGB], factor: int, channels: int, whitening: float) -> LinearCodec:
    """The codec whose components carry the most variance of the images' blocks.

    `whitening` 0 scales all channels together, which leaves them their natural proportions; 1
    gives each channel variance 1; between them, powers.  Their mean variance is always 1.
    """
    flat = np.concatenate([blocks(image, factor).reshape(-1, 3 * factor**2) for image in images])
    mean = flat.mean(0, dtype=np.float64)
    covariance = (flat - mean).T @ (flat - mean) / len(flat)
    if channels > len(mean):
        raise InputError(
            f"codec.channels is {channels}; blocks of {factor} x {factor} have only {len(mean)}."
        )
    variances, vectors = np.linalg.eigh(covariance)
    variances, vectors = variances[::-1][:channels], vectors[:, ::-1][:, :channels]
    vectors = vectors * np.sign(
        vectors[np.abs(vectors).argmax(0), np.arange(channels)]
    )  # eigh may flip signs
    gains = np.maximum(variances, 1e-8) ** (-whitening / 2)
    gains = gains / np.sqrt(np.mean(variances * gains**2))
    as_float32 = (x.astype(np.float32) for x in (mean, vectors * gains, (vectors / gains).T))
    return LinearCodec(*as_float32)


def psnr(image: np.ndarray, other: np.ndarray) -> float:
    """Peak signal to noise ratio of two uint8 images in dB; infinite where they are equal."""
    error = np.mean(np.square(image.astype(np.float64) - other))
    return float(10 * np.log10(255**2 / error)) if error else float("inf")
