"""Pictures from files, and records brought to the size of a slot."""

import io
import pathlib

import numpy as np
from PIL import Image, ImageOps

from onediff_jax.data.example import Picture, Record
from onediff_jax.errors import InputError

# How a field is resized: pictures are smoothed, measurements are picked.
SPATIAL = {
    "image": Image.Resampling.LANCZOS,
    "depth": Image.Resampling.NEAREST,
    "instances": Image.Resampling.NEAREST,
}


def picture_in(file: pathlib.Path | bytes) -> Picture:
    """The picture in a file or its bytes: turned by EXIF, transparency on white, three channels.

    Raises InputError, naming the file, where it is not a readable picture.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            image = ImageOps.exif_transpose(image)
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            if image.mode.startswith("I;16") or image.mode == "I":
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise InputError(f"There is no picture {file}.") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        name = "these bytes" if isinstance(file, bytes) else file
        raise InputError(f"{name} cannot be read as a picture: {error}") from error


def png(picture: np.ndarray) -> bytes:
    """A picture as PNG bytes."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png", compress_level=1)
    return file.getvalue()


def grid_for(height: int, width: int, tokens: int) -> tuple[int, int]:
    """Rows and columns of tokens, at most `tokens`, whose aspect is nearest to a picture's.

    Among the grids with as many rows or as many columns as fit, sides at most 1 : 4, that leave
    less than a tenth of the tokens unused (or, where there is none, the fullest).
    """
    grids = [
        (rows, columns)
        for side in range(1, tokens + 1)
        for rows, columns in ((side, tokens // side), (tokens // side, side))
        if columns <= 4 * rows <= 16 * columns
    ]
    full = [grid for grid in grids if grid[0] * grid[1] >= 0.9 * tokens] or [
        max(grids, key=np.prod)
    ]
    return min(full, key=lambda grid: abs(np.log(grid[0] / grid[1]) - np.log(height / width)))


def resized(field: np.ndarray, height: int, width: int, resample: Image.Resampling) -> np.ndarray:
    """A picture or map cut at its centre to the aspect of height x width, then resized to it."""
    h, w = field.shape[:2]
    if (h, w) == (height, width):
        return field
    scale = min(h / height, w / width)
    top, left = (h - height * scale) / 2, (w - width * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    return np.asarray(Image.fromarray(field).resize((width, height), resample, box=box))


def resized_record(record: Record, height: int, width: int) -> Record:
    """The record with every picture and map cut and resized to height x width."""
    return {
        name: resized(value, height, width, SPATIAL[name]) if name in SPATIAL else value
        for name, value in record.items()
    }
