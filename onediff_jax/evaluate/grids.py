"""Contact sheets: prompts, condition views, generated views and the truth, side by side."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from onediff_jax.data.example import RGB, EncodedImage, View
from onediff_jax.evaluate.held_out import CompletedExample
from onediff_jax.ops.cameras import Camera
from onediff_jax.ops.rays import ray_latents, rays_from_latents
from onediff_jax.sampling.generate import Rays

CELL = 128  # pixels along the longer side of a view
GAP = 6
LINE, CHARACTER = 13, 6.9  # pixels of a line of text, and of a character


class Row(NamedTuple):
    """A row of a sheet: a prompt, and views with what is written above them."""

    prompt: str
    cells: Sequence[tuple[str, View | Rays]]
    size: tuple[int, int]  # height and width of all views


def grid(completed: Sequence[CompletedExample]) -> UInt8[np.ndarray, "h w 3"]:
    """A row for every example: prompt, condition views | generated views | the truth of these."""
    rows = []
    for example in completed:
        views, generated = example.views, example.generated
        conditions = [name for name in views if name not in generated]
        cells = [(f"condition {name}", views[name]) for name in conditions]
        cells += [(f"generated {name}", view) for name, view in generated.items()]
        cells += [(f"true {name}", views[name]) for name in generated]
        rows.append(Row(example.example.text, cells, example.example.size))
    return sheet(rows)


def sheet(rows: Sequence[Row]) -> UInt8[np.ndarray, "h w 3"]:
    """A contact sheet of views."""
    drawn = []
    for prompt, cells, size in rows:
        shape = cell_size(size)[::-1]
        images = (Image.fromarray(image_of_view(view, size)) for _, view in cells)
        shown = [image.resize(shape, Image.Resampling.NEAREST) for image in images]
        drawn.append((prompt, [(name, i) for (name, _), i in zip(cells, shown, strict=True)]))
    return np.asarray(contact_sheet(drawn))


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[tuple[str, Image.Image]]]], text_width: int = 180
) -> Image.Image:
    """Rows under each other: a text `text_width` pixels wide, then images with their titles."""
    font = ImageFont.load_default(size=11)
    heights = [LINE + max(image.height for _, image in cells) + GAP for _, cells in rows]
    width = max(sum(image.width + GAP for _, image in cells) for _, cells in rows)
    whole = Image.new("RGB", (text_width + width, sum(heights)), "white")
    draw, top = ImageDraw.Draw(whole), 0
    for (text, cells), height in zip(rows, heights, strict=True):
        lines = textwrap.wrap(text, max(round(text_width / CHARACTER), 1))
        for j, line in enumerate(lines[: (height - GAP) // LINE]):
            draw.text((GAP, top + j * LINE), line, "black", font)
        left = text_width
        for title, image in cells:
            draw.text((left, top), title, "black", font)
            whole.paste(image, (left, top + LINE))
            left += image.width + GAP
        top += height
    return whole


def image_of_view(view: View | Rays, size: tuple[int, int]) -> RGB:
    """What a view looks like; of a camera or rays, the directions x, y, z as colors."""
    if isinstance(view, Camera):
        view = rays_from_latents(ray_latents(view, size, 1, 6))
    assert not isinstance(view, EncodedImage), "images are decoded before they are shown"
    if view.shape[-1] == 3:
        return view
    directions = view[..., :3] / np.maximum(np.linalg.norm(view[..., :3], axis=-1), 1e-9)[..., None]
    colors = np.round(127.5 * (directions + 1)).astype(np.uint8)
    return np.asarray(Image.fromarray(colors).resize(size[::-1], Image.Resampling.NEAREST))


def cell_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width at which a view of `size` is shown: whole multiples of small ones."""
    height, width = size
    scale = (
        max(CELL // max(height, width), 1)
        if max(height, width) <= CELL
        else CELL / max(height, width)
    )
    return round(height * scale), round(width * scale)
