"""Random sources, a codec without loss and rows, for tests of the loader."""

import functools

import numpy as np

from onediff_jax.data.batching.loader import DataConfig, Rows, SlotConfig
from onediff_jax.data.batching.rows import Batch
from onediff_jax.data.codecs import LinearCodec, fit, image_of
from onediff_jax.data.records import Source
from onediff_jax.data.tasks.table import TASKS
from onediff_jax.data.text import Tokenizer, vocabulary_of
from onediff_jax.ops.layout import Layout
from onediff_jax.ops.patches import unpatchify

FACTOR, PATCH = 2, 2
EDGE = FACTOR * PATCH
PROMPTS = [f"{task.token} a thing numbered {i}" for i in range(30) for task in TASKS.values()]
ALL = frozenset({"image", "depth", "instances", "names", "caption"})


@functools.cache
def full_codec() -> LinearCodec:
    """A codec that loses nothing: as many channels as a block has numbers."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return fit([image], FACTOR, 3 * FACTOR**2, 0.5)


@functools.cache
def small_tokenizer() -> Tokenizer:
    return Tokenizer(vocabulary_of(PROMPTS, 200), 40)


def decoded(row: Batch, view: int, layout: Layout, rows: int) -> np.ndarray:
    """The image in a view range of a row, `rows` tokens high."""
    tokens = (layout.view_of_token == view) & row.token_mask
    latents = unpatchify(row.latents[tokens], rows, PATCH)
    return image_of(full_codec().decode(latents))


class Drawn(Source):
    """Random records of unequal aspect; record i's caption is its name and i."""

    def __init__(self, name: str, count: int, fields: frozenset[str] = ALL):
        self.name, self.count, self.fields = name, count, fields

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        rng = np.random.default_rng([index, len(self.name)])
        size = tuple(rng.integers(12, 41, 2))
        record = {
            "image": rng.integers(0, 256, (*size, 3), dtype=np.uint8),
            "depth": rng.uniform(1, 9, size),
            "instances": rng.integers(0, 3, size).astype(np.uint8),
            "names": ("sphere", "box"),
            "caption": f"{self.name} {index}",
        }
        return {name: value for name, value in record.items() if name in self.fields}


# Not fewer records: grain's shuffle of n walks some 65536 / n steps for every index.
SOURCES = {
    "rooms": Drawn("room", 60),
    "photos": Drawn("photo", 40, frozenset({"image", "caption"})),
}
MIXED = DataConfig(
    tasks={
        "text2image": 1.0,
        "depth2image": 1.0,
        "semanticmap2image": 1.0,
        "image_inpainting": 2.0,
    },
    row=(
        SlotConfig(1, 16, count=2),
        SlotConfig(2, 13, tasks=("depth2image", "semanticmap2image")),
        SlotConfig(4, 6, packed=True),
        SlotConfig(2, 16, count=2),
    ),
    prompt_dropout=0.3,
)


def rows_of(config: DataConfig = MIXED, seed: int = 0, sources=SOURCES) -> Rows:
    return Rows(config, sources, full_codec(), PATCH, small_tokenizer(), seed)


def one_kind(views: int, tasks: dict[str, float], count: int = 1, **slot) -> DataConfig:
    row = (SlotConfig(views, 4, count=count, **slot),)
    return DataConfig(tasks=tasks, row=row, prompt_dropout=0.0)
