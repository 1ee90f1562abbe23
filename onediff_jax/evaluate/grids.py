"""Images of images: the prompt, what was given, what was made, and the truth, side by side."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from onediff_jax.data.example import RGB, View
from onediff_jax.evaluate.held_out import Completed
from onediff_jax.ops.cameras import Camera
from onediff_jax.ops.rays import ray_latents, rays_from_latents
from onediff_jax.sampling.generate import Rays

CELL = 128  # pixels along the longer side of a view
GAP = 6
LINE = 13  # pixels of a line of text


class Row(NamedTuple):
    """A row of a sheet: a prompt, and views with what is written above them."""

    prompt: str
    cells: Sequence[tuple[str, View | Rays]]
    size: tuple[int, int]  # height and width of all views


def grid(completed: Sequence[Completed]) -> UInt8[np.ndarray, "h w 3"]:
    """A row for every example: prompt, given views | made views | the truth of the made ones."""
    rows = []
    for example in completed:
        views, made = example.views, example.made
        cells = [(f"given {name}", view) for name, view in views.items() if name not in made]
        cells += [(f"made {name}", view) for name, view in made.items()]
        cells += [(f"true {name}", views[name]) for name in made]
        rows.append(Row(example.example.prompt, cells, example.example.size))
    return sheet(rows)


def sheet(rows: Sequence[Row]) -> UInt8[np.ndarray, "h w 3"]:
    """Rows under each other: the prompt, then the views."""
    font = ImageFont.load_default(size=11)
    height, width = cell_size(rows[0].size)
    columns = max(len(row.cells) for row in rows)
    left, tall = 180, height + LINE + GAP
    image = Image.new("RGB", (left + columns * (width + GAP), len(rows) * tall), "white")
    draw = ImageDraw.Draw(image)
    for i, row in enumerate(rows):
        top = i * tall
        for j, line in enumerate(textwrap.wrap(row.prompt, 26)[: (tall - GAP) // LINE]):
            draw.text((GAP, top + j * LINE), line, "black", font)
        for j, (name, view) in enumerate(row.cells):
            x = left + j * (width + GAP)
            draw.text((x, top), name, "black", font)
            shown = Image.fromarray(image_of_view(view, row.size))
            image.paste(shown.resize((width, height), Image.Resampling.NEAREST), (x, top + LINE))
    return np.asarray(image)


def image_of_view(view: View | Rays, size: tuple[int, int]) -> RGB:
    """What a view looks like; of a camera or rays, the directions x, y, z as colors."""
    if isinstance(view, Camera):
        view = rays_from_latents(ray_latents(view, size, 1, 6))
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
