"""The full scenes as a TFDS data set in array_record files: built once, read at random access.

Record i of a split is scene i of that split.  Processes draw, render and encode; this one writes.
"""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import pathlib
import unittest.mock
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from onediff_jax.data.scenes import captions, edits
from onediff_jax.data.scenes import placement as full_scenes
from onediff_jax.data.scenes.basic_builder import Builder, ScenesConfig, box_of, png_file, prepared
from onediff_jax.data.scenes.basic_render import FAR, intrinsics
from onediff_jax.data.scenes.objects import noun
from onediff_jax.data.scenes.placement import GROUP, FullScene
from onediff_jax.data.scenes.render import Seen, Shot, render
from onediff_jax.errors import InputError

CHUNK = 4  # scenes that a process makes at a time
# Memory that a process has used stays its own.  By default glibc gives back what arrays of some
# 100 KB leave and asks for it again at once, which takes a fifth of the time.
MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**28), "MALLOC_TRIM_THRESHOLD_": str(2**28)}
ALONE = 512  # scenes that this process makes by itself, since others take seconds to start


@dataclasses.dataclass(eq=False)
class FullScenesConfig(ScenesConfig):
    """What a set of full scenes is a function of; `views` counts the cameras of a scene."""

    size: int = 64
    views: int = 4

    def __post_init__(self):
        super().__post_init__()
        if self.views < 1:
            raise InputError(
                f"Scenes cannot be built with views={self.views}; set it to at least 1."
            )
        for name in ("train", "validation"):
            if getattr(self, name) % GROUP:
                raise InputError(
                    f"Full scenes come in groups of {GROUP}, which {name}={getattr(self, name)} "
                    f"would break; set it to a multiple of {GROUP}."
                )
        self.name = f"{self.views}views-{self.name}"


class FullScenes(Builder):
    """Groups of scenes that share a figure or an object, with all that tasks can ask of them."""

    # The first number goes up when equal settings give other images or captions than before.
    VERSION = tfds.core.Version("2.0.1")

    def _info(self) -> tfds.core.DatasetInfo:
        size, views, features = self.builder_config.size, self.builder_config.views, tfds.features
        tensor = functools.partial(features.Tensor, dtype=np.float32, encoding="bytes")
        image = functools.partial(features.Image, encoding_format="png")
        return self.dataset_info_from_configs(
            description="Solids and jointed figures on a plain ground, rendered analytically.",
            disable_shuffling=True,
            features=features.FeaturesDict(
                {
                    "image": image(shape=(size, size, 3)),
                    "more_views": image(
                        shape=(max(views - 1, 1) * size, size, 3),
                        doc="What the other cameras see, from top to bottom.",
                    ),
                    "depth": tensor(
                        shape=(size, size),
                        doc=f"Along the optical axis, in world units, at most {FAR}.",
                    ),
                    "normals": image(
                        shape=(size, size, 3),
                        doc="Outer normals along the camera's axes, 127 n + 128; 128 is sky.",
                    ),
                    "instances": image(
                        shape=(size, size, 1), doc="0: ground or sky; i: thing i, counted from 1."
                    ),
                    "things": features.Sequence(
                        {
                            "name": features.Text(),
                            "color": features.Text(doc="Of a person, the shirt's."),
                            "place": features.Text(doc="Third of the image's width."),
                            "box": features.Tensor(
                                shape=(4,),
                                dtype=np.float32,
                                doc="Left, top, right, bottom of the visible pixels, half open.",
                            ),
                        }
                    ),
                    "keypoints": features.Tensor(
                        shape=(None, 17, 3),
                        dtype=np.float32,
                        doc="COCO's, of every person: x, y in pixels, and visibility 0, 1 or 2.",
                    ),
                    "edited": image(shape=(size, size, 3)),
                    "instruction": features.Text(),
                    "caption": features.Text(),
                    "long_caption": features.Text(),
                    "item": features.Text(doc="What the group shares."),
                    "intrinsics": tensor(
                        shape=(views, 3, 3),
                        doc="In pixels; the first pixel's centre is (0.5, 0.5).",
                    ),
                    "camera_to_world": tensor(
                        shape=(views, 4, 4), doc="Axes: x right, y down, z forward; world: z up."
                    ),
                }
            ),
        )

    def _examples(self, split: str, indices: range) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        chunks = [indices[i : i + CHUNK] for i in range(0, len(indices), CHUNK)]
        make = functools.partial(records, config.seed, split, config.size, config.views)
        for chunk, made in zip(chunks, self._made(make, chunks), strict=True):
            for index, record in zip(chunk, made, strict=True):
                yield index, record
                if self.advance is not None:
                    self.advance()

    def _made(
        self, make: Callable[[range], list[dict]], chunks: list[range]
    ) -> Iterator[list[dict]]:
        """Records of the chunks, in order."""
        if len(chunks) * CHUNK <= ALONE:
            yield from map(make, chunks)
            return
        # Spawned, not forked: JAX's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with (
            unittest.mock.patch.dict(os.environ, MEMORY),
            concurrent.futures.ProcessPoolExecutor(os.cpu_count(), context) as pool,
        ):
            yield from pool.map(make, chunks, chunksize=8)


def _byte(values: np.ndarray) -> np.ndarray:
    return np.round(values).astype(np.uint8)


def records(seed: int, split: str, size: int, views: int, indices: range) -> list[dict[str, Any]]:
    """The records of scenes, as TFDS encodes them."""
    scenes = [full_scenes.draw_full_scene(seed, split, index, views) for index in indices]
    edited = [
        edits.draw_edit(seed, split, i, each) for i, each in zip(indices, scenes, strict=True)
    ]
    seen = render(
        [
            Shot(shown.solids(), shown.light.arrays(), camera.arrays())
            for scene, edit in zip(scenes, edited, strict=True)
            for shown, cameras in ((scene, scene.cameras), (edit.scene, scene.cameras[:1]))
            for camera in cameras
        ],
        size,
    )
    images = [seen[i : i + views + 1] for i in range(0, len(seen), views + 1)]
    items = [noun(full_scenes.shared_thing(seed, split, index)) for index in indices]
    return list(map(_record, indices, scenes, edited, images, items))


def _record(
    index: int, scene: FullScene, edit: edits.Edit, seen: list[Seen], item: str
) -> dict[str, Any]:
    """The record of a scene that its cameras see, and its first again once it is edited."""
    first, *others, edited = seen
    size, arrays = len(first.depth), [camera.arrays() for camera in scene.cameras]
    more = np.concatenate([each.image for each in others or [first]])
    people = full_scenes.seen_keypoints(scene) * np.array((size, size, 1), np.float32)
    return {
        "image": png_file(_byte(255 * first.image)),
        "more_views": png_file(_byte(255 * more)),
        "depth": first.depth,
        "normals": png_file(_byte(127 * first.normals + 128)),
        "instances": png_file(_byte(first.instances)),
        "things": [
            {
                "name": thing.name,
                "color": thing.color,
                "place": thing.place,
                "box": box_of(first.instances == i).astype(np.float32),
            }
            for i, thing in enumerate(scene.things, 1)
        ],
        "keypoints": people,
        "edited": png_file(_byte(255 * edited.image)),
        "instruction": edit.instruction,
        "caption": captions.caption(scene, index),
        "long_caption": captions.long_caption(scene, index),
        "item": item,
        "intrinsics": np.stack([intrinsics(camera, size) for camera in arrays]),
        "camera_to_world": np.stack([camera.camera_to_world for camera in arrays]),
    }


def build(
    folder: pathlib.Path, size: int, train: int, validation: int, seed: int, views: int
) -> FullScenes:
    """The full scenes of those settings in a folder, rendered now if they are not there yet."""
    config = FullScenesConfig(size=size, train=train, validation=validation, seed=seed, views=views)
    return prepared(FullScenes, config, folder)
