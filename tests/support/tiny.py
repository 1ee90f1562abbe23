"""A run small enough for tests: images of unequal aspect, all tasks, every kind of slot."""

import dataclasses

import numpy as np

from onediff_jax.data.batching.settings import DataConfig, SlotConfig
from onediff_jax.data.conditions.make import ConditionConfig
from onediff_jax.data.example import FIELDS, Record
from onediff_jax.data.records import Source, SourceSettings
from onediff_jax.data.registry import SOURCES
from onediff_jax.data.tasks.table import TASKS
from onediff_jax.models.nextdit import NextDiTConfig
from onediff_jax.models.t5 import T5Config
from onediff_jax.ops.cameras import Camera, orbit_cameras
from onediff_jax.train.config import CodecConfig, EvaluateConfig, RunConfig, TextConfig
from onediff_jax.train.state import OptimizerConfig

SHAPES = ((8, 8), (8, 12), (16, 8))


class Blobs(Source):
    """Images of one bright rectangle on a dark ground, with everything that a task can need."""

    fields = frozenset(FIELDS) - {"pictures", "colors", "places"}
    least = {"references": 4, "item_references": 4, "frames": 12}

    def __init__(self, count: int = 24):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        rng = np.random.default_rng(index)
        height, width = SHAPES[index % len(SHAPES)]
        instances = np.zeros((height, width), np.uint8)
        top, left = rng.integers(height // 2), rng.integers(width // 2)
        instances[top:, left:] = 1

        def image() -> np.ndarray:
            light, dark = rng.integers(150, 256, 3), rng.integers(0, 100, 3)
            return np.where(instances[..., None] > 0, light, dark).astype(np.uint8)

        name = ("box", "ball")[index % 2]
        caption = f"a {('small', 'large')[index % 3 > 0]} {name}, number {index}"
        others = [image() for _ in range(12)]
        points = rng.uniform(0, (width, height), (1, 17, 2))
        return dict(
            image=image(),
            depth=np.where(instances > 0, np.float32(1), np.float32(3)),
            instances=instances,
            names=(name,),
            boxes=np.array([[left, top, width, height]], np.float32),
            keypoints=np.concatenate([points, np.full((1, 17, 1), 2)], -1).astype(np.float32),
            edited=others[0],
            instruction=f"make the {name} bright",
            references=others[:4],
            reference_captions=[f"another {name}"] * 4,
            item=name,
            item_references=others[:4],
            item_captions=[f"another {name}"] * 4,
            frames=others,
            cameras=orbit(height, width, rng),
            caption=caption,
        )


def orbit(height: int, width: int, rng: np.random.Generator) -> list[Camera]:
    """Twelve cameras about the origin."""
    azimuth, elevation = np.sort(rng.uniform(0, 300, 12)), rng.uniform(0, 40, 12)
    rig = orbit_cameras(azimuth, elevation, np.full(12, 1.5), (height, width))
    return [Camera(*parts) for parts in zip(*rig, strict=True)]


@dataclasses.dataclass(frozen=True)
class BlobSettings(SourceSettings):
    """Settings of such a source."""

    count: int = 24
    held_out: int | None = None  # records for validation; None: the same as for training

    def records(self, split: str) -> Source:
        """The first images for either split."""
        held_out = self.count if self.held_out is None else self.held_out
        return Blobs(held_out if split == "validation" else self.count)


PACKED = ("text2image", "depth2image", "faceid", "subject_driven", "multiview")
SOURCES["blobs"] = BlobSettings


def tiny_config(**changes) -> RunConfig:
    """Rows of 1 x 4, 2 x 10 and packed 4 x 10 tokens of 4 x 4 pixels; a model of width 24."""
    config = RunConfig(
        steps=6,
        rows=8,
        model=NextDiTConfig(width=24, depth=2, heads=4, kv_heads=2, multiple_of=8, dtype="float32"),
        data=DataConfig(
            sources={"blobs": BlobSettings()},
            tasks={name: 1.0 for name in TASKS if name != "hed2image"} | {"text2image": 2.0},
            row=(
                SlotConfig(views=1, tokens=4),
                SlotConfig(views=2, tokens=10),
                SlotConfig(views=6, tokens=10, packed=True, tasks=PACKED),
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
        evaluate=EvaluateConfig(rows=0),
    )
    small = dataclasses.replace(config.model, channels=8)
    return dataclasses.replace(dataclasses.replace(config, model=small), **changes)
