"""Rows: examples placed into the slots of a layout, and batches of rows."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from onediff_jax.data.codecs import Codec, DeviceCodec
from onediff_jax.data.example import EncodedImage, EncodedPrompt, SourcedExample, View
from onediff_jax.data.tasks.table import TASKS, bare_prompt
from onediff_jax.data.text import Tokenizer
from onediff_jax.ops.cameras import Camera
from onediff_jax.ops.layout import Layout
from onediff_jax.ops.patches import patchify
from onediff_jax.ops.rays import ray_latents

TASK_NAMES = tuple(TASKS)


class Batch(NamedTuple):
    """The only thing that data and training agree on.

    A row has the same fields without their first axis.  Deviations and pixels have no features (a
    last axis of 0) where a run has no use for them.
    """

    latents: Float[np.ndarray, "*b n p"]  # clean patches, normalised; 0 where not yet encoded
    deviations: Float[np.ndarray, "*b n _"]  # of latents that the step draws around `latents`
    pixels: UInt8[np.ndarray, "*b n _"]  # of a token's part of an image, row, column, color
    encoded: Bool[np.ndarray, "*b v"]  # false: the step encodes the view's pixels
    positions: Int[np.ndarray, "*b n 3"]  # view within its example, row, column
    example_of_view: Int[np.ndarray, "*b v"]  # -1: an empty range
    token_mask: Bool[np.ndarray, "*b n"]  # false: padding
    text: Int[np.ndarray, "*b e l"] | Float[np.ndarray, "*b e l c"]  # token ids, or states
    text_mask: Bool[np.ndarray, "*b e l"]  # never all false
    task: Int[np.ndarray, "*b e"]  # place in TASK_NAMES; -1: an unused place
    source: Int[np.ndarray, "*b e"]  # number of the example's source; -1 likewise
    bad_records: Int[np.ndarray, "*b e"]  # that the example stands in for


class BatchFields(NamedTuple):
    """What rows carry beside latents and token ids."""

    pixels: bool = False  # images, for a codec inside the step
    deviations: bool = False  # of encoded images
    empty: EncodedPrompt | None = None  # states instead of ids: those of the empty prompt
    bare: Mapping[str, EncodedPrompt] | None = None  # and those of prompts without a caption

    @property
    def encoders(self) -> tuple[str, ...]:
        """Encoders that work inside the step on what rows carry: text, codec."""
        return ("text",) * (self.empty is None) + ("codec",) * self.pixels


NOTHING_ELSE = BatchFields()


class Writer:
    """Fills one row, example by example."""

    def __init__(
        self,
        layout: Layout,
        codec: Codec | DeviceCodec,
        patch: int,
        tokenizer: Tokenizer,
        carried: BatchFields = NOTHING_ELSE,
    ):
        self._layout, self._codec, self._patch, self._tokenizer = layout, codec, patch, tokenizer
        self._carried = carried
        features = codec.channels * patch**2
        pixels = 3 * (codec.factor * patch) ** 2
        empty, empty_mask = self._text(carried.empty or "")
        self.row = Batch(
            latents=np.zeros((layout.tokens, features), np.float32),
            deviations=np.zeros((layout.tokens, carried.deviations * features), np.float32),
            pixels=np.zeros((layout.tokens, carried.pixels * pixels), np.uint8),
            encoded=np.ones(layout.views, bool),
            positions=np.zeros((layout.tokens, 3), np.int32),
            example_of_view=np.full(layout.views, -1, np.int32),
            token_mask=np.zeros(layout.tokens, bool),
            text=np.repeat(empty[None], layout.examples, 0),
            text_mask=np.repeat(empty_mask[None], layout.examples, 0),
            task=np.full(layout.examples, -1, np.int32),
            source=np.full(layout.examples, -1, np.int32),
            bad_records=np.zeros(layout.examples, np.int32),
        )
        self._starts = np.searchsorted(layout.view_of_token, np.arange(layout.views))

    def place(
        self,
        sourced: SourcedExample,
        place: int,
        view: int,
        drop_prompt: bool = False,
        drop_caption: bool = False,
    ) -> None:
        """Writes an example as the row's `place`-th, its views from range `view` on.

        Its prompt can be dropped, or its caption alone, which leaves the task's token.
        """
        row, example = self.row, sourced.example
        row.task[place] = TASK_NAMES.index(example.task)
        row.source[place], row.bad_records[place] = sourced.source, sourced.bad_records
        prompt = example.prompt
        if drop_prompt:
            prompt = self._carried.empty or ""
        elif drop_caption:
            prompt = bare_prompt(example.task, len(example.views))
            prompt = self._carried.bare[prompt] if self._carried.bare else prompt
        row.text[place], row.text_mask[place] = self._text(prompt)
        factor = self._codec.factor
        if isinstance(example.views[0], EncodedImage):
            height, width = example.latent_size
            size = (factor * height, factor * width)
        else:
            size = example.size
        rows, columns = (side // (factor * self._patch) for side in size)
        for index, shown in enumerate(example.views):
            start = self._starts[view + index]
            tokens = slice(start, start + rows * columns)
            if isinstance(self._codec, DeviceCodec) and isinstance(shown, np.ndarray):
                row.pixels[tokens] = patchify(shown, factor * self._patch)
                row.encoded[view + index] = False
            else:
                row.latents[tokens] = patchify(latents_of(shown, size, self._codec), self._patch)
            if self._carried.deviations and isinstance(shown, EncodedImage):
                row.deviations[tokens] = patchify(shown.std, self._patch)
            row.positions[tokens, 0] = index
            row.positions[tokens, 1:] = grid_positions(columns, rows * columns)
            row.token_mask[tokens] = True
            row.example_of_view[view + index] = place

    def _text(self, prompt: str | EncodedPrompt) -> tuple[np.ndarray, Bool[np.ndarray, " l"]]:
        """Ids or states, padded with 0, and which of them count."""
        if isinstance(prompt, str):
            return self._tokenizer(prompt)
        tokens, length = prompt.tokens, self._tokenizer.length
        padding = [(0, length - len(tokens))] + [(0, 0)] * (tokens.ndim - 1)
        return np.pad(tokens, padding), np.arange(length) < len(tokens)


def latents_of(
    view: View, size: tuple[int, int], codec: Codec | DeviceCodec
) -> Float[np.ndarray, "H W c"]:
    """Normalised latents of an image by the codec, or of a camera's rays.

    An encoded image's are its means.
    """
    if isinstance(view, Camera):
        return ray_latents(view, size, codec.factor, codec.channels)
    if isinstance(view, EncodedImage):
        return view.mean.astype(np.float32)
    assert not isinstance(codec, DeviceCodec), "rows carry the pixels of such a codec"
    return codec.encode(view)


def grid_positions(columns: int, tokens: int) -> Int[np.ndarray, "n 2"]:
    """Row and column of every token of a view, in patch order."""
    return np.stack(np.divmod(np.arange(tokens), columns), -1).astype(np.int32)


def stack(rows: list[Batch]) -> Batch:
    """Rows as a batch."""
    return Batch(*map(np.stack, zip(*rows, strict=True)))
