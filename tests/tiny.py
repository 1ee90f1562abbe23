"""A run small enough for tests: pictures of unequal aspect, all tasks, every kind of slot."""

import dataclasses

import numpy as np

from onediff_jax.data.conditions import ConditionConfig
from onediff_jax.data.example import Record
from onediff_jax.data.loader import DataConfig, SlotConfig
from onediff_jax.data.sources import SOURCES, Source
from onediff_jax.data.tasks import TASKS
from onediff_jax.models.nextdit import NextDiTConfig
from onediff_jax.models.t5 import T5Config
from onediff_jax.train.run import CodecConfig, RunConfig, TextConfig
from onediff_jax.train.state import OptimizerConfig

SHAPES = ((8, 8), (8, 12), (16, 8))


class Blobs(Source):
    """Pictures of one bright rectangle on a dark ground, with depth, instances and a caption."""

    fields = frozenset({"image", "depth", "instances", "names", "caption"})

    def __init__(self, count: int = 24):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        rng = np.random.default_rng(index)
        height, width = SHAPES[index % len(SHAPES)]
        instances = np.zeros((height, width), np.uint8)
        instances[rng.integers(height // 2) :, rng.integers(width // 2) :] = 1
        image = np.where(
            instances[..., None] > 0, rng.integers(150, 256, 3), rng.integers(0, 100, 3)
        )
        name = ("box", "ball")[index % 2]
        return Record(
            image=image.astype(np.uint8),
            depth=np.where(instances > 0, np.float32(1), np.float32(3)),
            instances=instances,
            names=(name,),
            caption=f"a {('small', 'large')[index % 3 > 0]} {name}, number {index}",
        )


@dataclasses.dataclass(frozen=True)
class BlobSettings:
    """Settings of such a source."""

    count: int = 24

    def open(self, split: str) -> Source:
        """The same pictures for either split."""
        del split
        return Blobs(self.count)


SOURCES["blobs"] = BlobSettings


def tiny_config(**changes) -> RunConfig:
    """Rows of 1 x 4, 2 x 10 and packed 4 x 10 tokens of 4 x 4 pixels; a model of width 24."""
    config = RunConfig(
        steps=6,
        rows=8,
        model=NextDiTConfig(width=24, depth=2, heads=4, kv_heads=2, multiple_of=8, dtype="float32"),
        data=DataConfig(
            sources={"blobs": BlobSettings()},
            tasks={name: 1.0 for name in TASKS} | {"text2image": 2.0},
            row=(
                SlotConfig(views=1, tokens=4),
                SlotConfig(views=2, tokens=10),
                SlotConfig(views=4, tokens=10, packed=True),
            ),
            conditions=ConditionConfig(map_colors="fixed"),
        ),
        text=TextConfig(
            vocabulary=100,
            length=12,
            encoder=T5Config(width=16, depth=1, heads=2, head_width=8, hidden=16, dtype="float32"),
        ),
        codec=CodecConfig(factor=2, pictures=50),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup=1),
    )
    small = dataclasses.replace(config.model, channels=8)
    return dataclasses.replace(dataclasses.replace(config, model=small), **changes)
