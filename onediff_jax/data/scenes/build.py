"""Scenes as a TFDS data set in array_record files: built once, read at random access.

Record i of a split is scene i of that split.  Processes draw, render and encode; this one writes.
TensorFlow is needed for neither.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import multiprocessing
import os
import pathlib
import tempfile
import unittest.mock
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import Int
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from onediff_jax.data.images import png
from onediff_jax.data.scenes import captions, edits, placement
from onediff_jax.data.scenes.objects import noun
from onediff_jax.data.scenes.placement import Scene
from onediff_jax.data.scenes.render import FAR, Seen, Shot, render
from onediff_jax.data.scenes.worlds import WORLDS
from onediff_jax.errors import InputError

SCENES_OF_FILE = 4096  # scenes to a file
SCENES_AT_ONCE = 4  # scenes that a process makes at a time
SCENES_ALONE = 512  # scenes that this process makes by itself, since others take seconds to start
# Memory that a process has used stays its own.  By default glibc gives back what arrays of some
# 100 KB leave and asks for it again at once, which takes a fifth of the time.
MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**28), "MALLOC_TRIM_THRESHOLD_": str(2**28)}


@dataclasses.dataclass(eq=False)
class ScenesConfig(tfds.core.BuilderConfig):
    """What a set of scenes is a function of; sizes in pixels, splits in scenes."""

    name: str = ""  # follows from the others
    content: str = "full"  # the world
    size: int = 64
    train: int = 10_000
    validation: int = 500
    seed: int = 0
    views: int = 4  # cameras of a scene

    def __post_init__(self):
        group = WORLDS[self.content].group
        for name in ("train", "validation"):
            if getattr(self, name) % group:
                raise InputError(
                    f"Scenes of content {self.content!r} come in groups of {group}, which "
                    f"{name}={getattr(self, name)} would break; set it to a multiple of {group}."
                )
        numbers = f"{self.views}views-{self.size}px-{self.train}-{self.validation}"
        self.name = f"{self.content}-{numbers}-seed{self.seed}"


# TFDS has no types, so that its keyword of a class is not known.
class SceneBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes the scenes of a configuration, shard by shard."""

    # Not GeneratorBasedBuilder: that holds a split in memory to sort it, and past a gigabyte needs
    # TensorFlow.

    name = "scenes"
    # The first number goes up when equal settings give other images or captions than before.
    VERSION = tfds.core.Version("3.0.0")
    advance: Callable[[], Any] | None = None  # called for every scene that is written
    url_infos = None  # nothing is downloaded, so there are no checksums to look for

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        return self.dataset_info_from_configs(
            description="Solids and jointed figures on a plain ground, rendered analytically.",
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                scene_features(config.content, config.size, config.views)
            ),
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Callable[[], Iterator[tuple[int, dict]]]]]:
        config = self.builder_config
        return {
            split: [
                functools.partial(self._examples, split, range(i, min(i + SCENES_OF_FILE, count)))
                for i in range(0, count, SCENES_OF_FILE)
            ]
            for split, count in (("train", config.train), ("validation", config.validation))
        }

    def _examples(self, split: str, indices: range) -> Iterator[tuple[int, dict]]:
        """Keys and records of the scenes of those numbers."""
        config = self.builder_config
        chunks = [indices[i : i + SCENES_AT_ONCE] for i in range(0, len(indices), SCENES_AT_ONCE)]
        make = functools.partial(
            records, config.content, config.seed, split, config.size, config.views
        )
        for chunk, made in zip(chunks, self._made(make, chunks), strict=True):
            for index, record in zip(chunk, made, strict=True):
                yield index, record
                if self.advance is not None:
                    self.advance()

    def _made(
        self, make: Callable[[range], list[dict]], chunks: list[range]
    ) -> Iterator[list[dict]]:
        """Records of the chunks, in order."""
        if len(chunks) * SCENES_AT_ONCE <= SCENES_ALONE:
            yield from map(make, chunks)
            return
        # Spawned, not forked: JAX's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with (
            unittest.mock.patch.dict(os.environ, MEMORY),
            concurrent.futures.ProcessPoolExecutor(os.cpu_count(), context) as pool,
        ):
            yield from pool.map(make, chunks, chunksize=8)


def scene_features(content: str, size: int, views: int) -> dict[str, Any]:
    """TFDS's features of the scenes of a world."""
    world, kinds = WORLDS[content], tfds.features
    image = functools.partial(kinds.Image, encoding_format="png")
    tensor = functools.partial(kinds.Tensor, dtype=np.float32)
    features: dict[str, Any] = {
        "image": image(shape=(size, size, 3)),
        "depth": tensor(
            shape=(size, size),
            encoding="bytes",
            doc=f"Along the optical axis, in world units, at most {FAR}.",
        ),
        "normals": image(
            shape=(size, size, 3),
            doc="Outer normals along the camera's axes, 127 n + 128; 128 is sky.",
        ),
        "instances": image(
            shape=(size, size, 1), doc="0: ground or sky; i: object i, counted from 1."
        ),
        "objects": kinds.Sequence(
            {
                "name": kinds.Text(),
                "color": kinds.Text(doc="Of a person, the shirt's."),
                "place": kinds.Text(doc="Third of the image's width."),
                "box": kinds.BBoxFeature(bbox_format="XYXY", doc="Of the visible pixels."),
            }
        ),
        "caption": kinds.Text(),
        "cameras": kinds.Sequence(
            {
                "intrinsics": tensor(
                    shape=(3, 3), doc="In pixels; the first pixel's centre is (0.5, 0.5)."
                ),
                "camera_to_world": tensor(
                    shape=(4, 4), doc="Axes: x right, y down, z forward; world: z up."
                ),
            }
        ),
    }
    if views > 1:
        features["frames"] = kinds.Sequence(image(shape=(size, size, 3)), doc="Of the cameras.")
    if world.figures:
        features["keypoints"] = kinds.Sequence(
            tensor(shape=(17, 3)),
            doc="COCO's, of every person: x, y in pixels, and visibility 0, 1 or 2.",
        )
    if world.edits:
        features |= {"edited": image(shape=(size, size, 3)), "instruction": kinds.Text()}
    if world.long_captions:
        features["long_caption"] = kinds.Text()
    if world.group > 1:
        features["item"] = kinds.Text(doc="What the group shares.")
    return features


def records(
    content: str, seed: int, split: str, size: int, views: int, indices: range
) -> list[dict[str, Any]]:
    """The records of scenes, as TFDS encodes them."""
    world = WORLDS[content]
    scenes = [placement.draw_scene(world, seed, split, index, views) for index in indices]
    pairs = list(zip(indices, scenes, strict=True))
    edited = [edits.draw_edit(seed, split, *pair) for pair in pairs] if world.edits else []
    shots = [
        Shot(scene.solids(), scene.light, camera) for scene in scenes for camera in scene.cameras
    ] + [Shot(edit.scene.solids(), edit.scene.light, edit.scene.cameras[0]) for edit in edited]
    seen = render(shots, size)
    images = [png_bytes(255 * each.image) for each in seen]
    found = []
    for number, (index, scene) in enumerate(pairs):
        start = number * views
        record = _record(index, scene, seen[start], images[start : start + views])
        if world.edits:
            record["edited"] = io.BytesIO(images[len(scenes) * views + number])
            record["instruction"] = edited[number].instruction
        if world.group > 1:
            record["item"] = noun(placement.shared_object(world, seed, split, index))
        found.append(record)
    return found


def _record(index: int, scene: Scene, seen: Seen, images: list[bytes]) -> dict[str, Any]:
    """The record of a scene: what its first camera sees, and the images of all its cameras.

    Images are files in memory, since TFDS needs TensorFlow to encode an array.
    """
    size = len(seen.depth)
    record = {
        "image": io.BytesIO(images[0]),
        "depth": seen.depth,
        "normals": io.BytesIO(png_bytes(127 * seen.normals + 128)),
        "instances": io.BytesIO(png_bytes(seen.instances)),
        "objects": [
            {
                "name": item.name,
                "color": item.color,
                "place": item.place,
                "box": mask_box(seen.instances == i).astype(np.float32),
            }
            for i, item in enumerate(scene.objects, 1)
        ],
        "caption": captions.caption(scene, index),
        "cameras": [
            {"intrinsics": camera.intrinsics(size), "camera_to_world": camera.camera_to_world}
            for camera in scene.cameras
        ],
    }
    if len(images) > 1:
        record["frames"] = list(map(io.BytesIO, images))
    if scene.world.figures:
        people = placement.seen_keypoints(scene) * np.array((size, size, 1), np.float32)
        record["keypoints"] = list(people)
    if scene.world.long_captions:
        record["long_caption"] = captions.long_caption(scene, index)
    return record


def png_bytes(values: np.ndarray) -> bytes:
    """A PNG file of an image, whose values are rounded."""
    return png(np.round(values).astype(np.uint8))


def mask_box(mask: np.ndarray) -> Int[np.ndarray, "4"]:
    """Left, top, right and bottom of a mask's pixels, half open."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.int32)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to itself what TFDS says of custom configurations, downloads and unknown sizes."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)


def build(folder: pathlib.Path, **settings: Any) -> str:
    """TFDS's name of the scenes of some settings in a folder, rendered now if they are not there.

    The settings are those of `ScenesConfig`.
    """
    config = ScenesConfig(**settings)
    with _quiet():
        builder = SceneBuilder(config=config, data_dir=folder, file_format="array_record")
        # TFDS writes beside this folder and renames at the end: what is in it is complete.
        finished = builder.data_path / "dataset_info.json"
        if not finished.exists():
            columns = (TextColumn("Rendering scenes"), BarColumn(), MofNCompleteColumn())
            with (
                Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress,
                tempfile.TemporaryDirectory() as nothing,
            ):
                task = progress.add_task("", total=config.train + config.validation)
                builder.advance = functools.partial(progress.advance, task)
                try:
                    builder.download_and_prepare(download_dir=nothing)
                except OSError:
                    if not finished.exists():  # else another process was faster
                        raise
    return f"{builder.name}/{config.name}:{builder.VERSION}"
