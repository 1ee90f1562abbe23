"""Rows: examples placed into the slots of a layout, and batches of rows."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from onediff_jax.data.example import Placed, View
from onediff_jax.data.latents import LinearCodec
from onediff_jax.data.tasks import TASKS
from onediff_jax.data.text import Tokenizer
from onediff_jax.ops.cameras import Camera
from onediff_jax.ops.layout import Layout
from onediff_jax.ops.patches import patchify
from onediff_jax.ops.rays import ray_latents

TASK_NAMES = tuple(TASKS)


class Batch(NamedTuple):
    """The only thing that data and training agree on.

    A row has the same fields without their first axis.
    """

    latents: Float[np.ndarray, "*b n p"]  # clean patches, normalised
    positions: Int[np.ndarray, "*b n 3"]  # view within its example, row, column
    example_of_view: Int[np.ndarray, "*b v"]  # -1: an empty range
    token_mask: Bool[np.ndarray, "*b n"]  # false: padding
    text: Int[np.ndarray, "*b e l"]  # token ids
    text_mask: Bool[np.ndarray, "*b e l"]  # never all false
    task: Int[np.ndarray, "*b e"]  # place in TASK_NAMES; -1: an unused place
    source: Int[np.ndarray, "*b e"]  # number of the example's source; -1 likewise
    faults: Int[np.ndarray, "*b e"]  # records at fault that the example stands in for


class Writer:
    """Fills one row, example by example."""

    def __init__(self, layout: Layout, codec: LinearCodec, patch: int, tokenizer: Tokenizer):
        self._layout, self._codec, self._patch, self._tokenizer = layout, codec, patch, tokenizer
        features = codec.channels * patch**2
        empty, empty_mask = tokenizer("")
        self.row = Batch(
            latents=np.zeros((layout.tokens, features), np.float32),
            positions=np.zeros((layout.tokens, 3), np.int32),
            example_of_view=np.full(layout.views, -1, np.int32),
            token_mask=np.zeros(layout.tokens, bool),
            text=np.repeat(empty[None], layout.examples, 0),
            text_mask=np.repeat(empty_mask[None], layout.examples, 0),
            task=np.full(layout.examples, -1, np.int32),
            source=np.full(layout.examples, -1, np.int32),
            faults=np.zeros(layout.examples, np.int32),
        )
        self._starts = np.searchsorted(layout.view_of_token, np.arange(layout.views))

    def place(self, placed: Placed, place: int, view: int, drop_prompt: bool = False) -> None:
        """Writes an example as the row's `place`-th, its views from range `view` on."""
        row, example = self.row, placed.example
        row.task[place] = TASK_NAMES.index(example.task)
        row.source[place], row.faults[place] = placed.source, placed.faults
        row.text[place], row.text_mask[place] = self._tokenizer(
            "" if drop_prompt else example.prompt
        )
        for index, shown in enumerate(example.views):
            latents = latents_of(shown, example.size, self._codec)
            patches = patchify(latents, self._patch)
            start = self._starts[view + index]
            tokens = slice(start, start + len(patches))
            row.latents[tokens] = patches
            row.positions[tokens, 0] = index
            row.positions[tokens, 1:] = grid_positions(
                latents.shape[1] // self._patch, len(patches)
            )
            row.token_mask[tokens] = True
            row.example_of_view[view + index] = place


def latents_of(view: View, size: tuple[int, int], codec: LinearCodec) -> Float[np.ndarray, "H W c"]:
    """Normalised latents of a picture by the codec, or of a camera's rays."""
    if isinstance(view, Camera):
        return ray_latents(view, size, codec.factor, codec.channels)
    return codec.encode(view)


def grid_positions(columns: int, tokens: int) -> Int[np.ndarray, "n 2"]:
    """Row and column of every token of a view, in patch order."""
    return np.stack(np.divmod(np.arange(tokens), columns), -1).astype(np.int32)


def stack(rows: list[Batch]) -> Batch:
    """Rows as a batch."""
    return Batch(*map(np.stack, zip(*rows, strict=True)))
