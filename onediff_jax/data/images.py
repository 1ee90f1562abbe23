"""Images from files, whatever their kind."""

import io
import pathlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from onediff_jax.data.example import RGB
from onediff_jax.errors import BadRecord, InputError


def image_in(file: pathlib.Path) -> RGB:
    """The image in a file; raises InputError, naming it, where there is none."""
    try:
        return decode_image(file.read_bytes(), str(file))
    except OSError as error:
        raise InputError(f"There is no image {file}: {error.strerror}.") from None


def decode_image(data: bytes, name: str) -> RGB:
    """The image in a file's bytes: turned by EXIF, transparency on white, three channels.

    Raises BadRecord, with `name`, where they are not a readable image.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            ImageOps.exif_transpose(opened, in_place=True)
            image: Image.Image = opened
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            if image.mode.startswith("I"):
                image = Image.fromarray(eight_bits(np.asarray(image)))
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadRecord(f"{name} cannot be read as an image: {error}") from error


def eight_bits(grey: np.ndarray) -> UInt8[np.ndarray, "h w"]:
    """Grey levels of 16 bits, which may be stored in more, as 8; smaller ones as they are."""
    return (grey >> 8 if grey.max() > 255 else grey).clip(0, 255).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    """An image as PNG bytes."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png", compress_level=1)
    return file.getvalue()
