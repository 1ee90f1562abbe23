"""Pictures of pictures: the prompt, what was given, what was made, and the truth, side by side."""

import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from onediff_jax.data.tasks import TASKS
from onediff_jax.evaluate.held_out import Completed

CELL = 128  # pixels along the longer side of a view
GAP = 6
LINE = 13  # pixels of a line of text


def grid(completed: Sequence[Completed]) -> UInt8[np.ndarray, "h w 3"]:
    """A row for every example: prompt, given views | made views | the truth of the made ones."""
    font = ImageFont.load_default(size=11)
    rows = []
    for example in completed:
        views = dict(zip(TASKS[example.example.task].views, example.example.views, strict=True))
        cells = [
            (f"given {name}", view) for name, view in views.items() if name not in example.made
        ]
        cells += [(f"made {name}", view) for name, view in example.made.items()]
        cells += [(f"true {name}", views[name]) for name in example.made]
        rows.append((textwrap.wrap(example.example.prompt, 26), cells))
    height, width = cell_size(rows[0][1][0][1])
    columns = max(len(cells) for _, cells in rows)
    left = 180
    tall = height + LINE + GAP
    sheet = Image.new("RGB", (left + columns * (width + GAP), len(rows) * tall), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (words, cells) in enumerate(rows):
        top = i * tall
        for j, line in enumerate(words[: (tall - GAP) // LINE]):
            draw.text((GAP, top + j * LINE), line, "black", font)
        for j, (name, view) in enumerate(cells):
            x = left + j * (width + GAP)
            draw.text((x, top), name, "black", font)
            shown = Image.fromarray(view).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(shown, (x, top + LINE))
    return np.asarray(sheet)


def cell_size(view: np.ndarray) -> tuple[int, int]:
    """Height and width at which a view is shown: whole multiples of small ones."""
    height, width = view.shape[:2]
    scale = (
        max(CELL // max(height, width), 1)
        if max(height, width) <= CELL
        else CELL / max(height, width)
    )
    return round(height * scale), round(width * scale)
