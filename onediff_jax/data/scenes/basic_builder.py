"""The built-in scenes as a TFDS data set in array_record files: built once, read at random access.

Record i of a split is scene i of that split.  TensorFlow is needed for neither.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import Int
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from onediff_jax.data.scenes import basic as scenes
from onediff_jax.data.scenes import basic_render as render
from onediff_jax.errors import InputError

BATCH = 16  # scenes rendered at a time; more fall out of the processor's cache
SHARD = 4096  # scenes to a file


@dataclasses.dataclass(eq=False)
class ScenesConfig(tfds.core.BuilderConfig):
    """What a set of scenes is a function of; sizes in pixels, splits in scenes."""

    name: str = ""  # follows from the others
    size: int = 32
    train: int = 10_000
    validation: int = 500
    seed: int = 0

    def __post_init__(self):
        for name, least in (("size", 8), ("train", 1), ("validation", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(
                    f"Scenes cannot be built with {name}={getattr(self, name)}; "
                    f"set it to at least {least}."
                )
        self.name = f"{self.size}px-{self.train}-{self.validation}-seed{self.seed}"


class Builder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Writes the scenes of a configuration, shard by shard."""

    # Not GeneratorBasedBuilder: that holds a split in memory to sort it, and past a gigabyte needs
    # TensorFlow.

    advance: Callable[[], Any] | None = None  # called for every scene that is written
    url_infos = None  # nothing is downloaded, so there are no checksums to look for

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Callable[[], Iterator[tuple[int, dict]]]]]:
        config = self.builder_config
        return {
            split: [
                functools.partial(self._examples, split, range(i, min(i + SHARD, count)))
                for i in range(0, count, SHARD)
            ]
            for split, count in (("train", config.train), ("validation", config.validation))
        }

    def _examples(self, split: str, indices: range) -> Iterator[tuple[int, dict]]:
        """Keys and records of the scenes of those numbers."""
        raise NotImplementedError


class Scenes(Builder):
    """Captioned images of procedural scenes with depth, instances, objects and cameras."""

    # The first number goes up when equal settings give other images or captions than before.
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        size, features = self.builder_config.size, tfds.features
        tensor = functools.partial(features.Tensor, dtype=np.float32, encoding="bytes")
        return self.dataset_info_from_configs(
            description="Spheres and boxes on a plain ground, rendered analytically.",
            disable_shuffling=True,
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(size, size, 3), encoding_format="png"),
                    "depth": tensor(
                        shape=(size, size),
                        doc=f"Along the optical axis, in world units, at most {render.FAR}.",
                    ),
                    "instances": features.Image(
                        shape=(size, size, 1),
                        encoding_format="png",
                        doc="0: ground or sky; i: object i, counted from 1.",
                    ),
                    "objects": features.Sequence(
                        {
                            "shape": features.Text(),
                            "color": features.Text(),
                            "size": features.Text(),
                            "place": features.Text(doc="Third of the image's width."),
                            "box": features.Tensor(
                                shape=(4,),
                                dtype=np.int32,
                                doc="Left, top, right, bottom of the visible pixels, half open.",
                            ),
                        }
                    ),
                    "caption": features.Text(),
                    "intrinsics": tensor(
                        shape=(3, 3), doc="In pixels; the first pixel's centre is (0.5, 0.5)."
                    ),
                    "camera_to_world": tensor(
                        shape=(4, 4), doc="Axes: x right, y down, z forward; world: z up."
                    ),
                }
            ),
        )

    def _examples(self, split: str, indices: range) -> Iterator[tuple[int, dict]]:
        """Keys and records of the scenes of those numbers."""
        size, seed = self.builder_config.size, self.builder_config.seed
        rendered = _renderer(size)

        def drawn(start: int) -> list[scenes.Scene]:
            return [scenes.draw_scene(seed, split, i) for i in indices[start : start + BATCH]]

        # A thread renders one batch while this one draws the next.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            batch = drawn(0)
            for start in range(0, len(indices), BATCH):
                images = thread.submit(rendered, batch)
                ahead = drawn(start + BATCH)
                images, depths, instances = images.result()
                for i, scene in enumerate(batch):
                    index = indices[start + i]
                    yield index, _record(scene, images[i], depths[i], instances[i], index)
                    if self.advance is not None:
                        self.advance()
                batch = ahead


@functools.cache
def _renderer(size: int) -> Callable[[list[scenes.Scene]], tuple[np.ndarray, ...]]:
    """A function from at most BATCH scenes to images (uint8), depths and instances (uint8)."""
    import jax  # here, since loader workers import this file to read
    import jax.numpy as jnp

    # On the CPU wherever training runs, so that equal settings give equal scenes.
    cpu = jax.local_devices(backend="cpu")[0]

    @jax.jit
    @jax.vmap
    def draw(scene: render.SceneArrays) -> Any:
        seen = render.render(scene, size, xp=jnp)
        image = jnp.round(255 * seen.image).astype(jnp.uint8)
        return image, seen.depth, seen.instances.astype(jnp.uint8)

    def rendered(batch: list[scenes.Scene]) -> tuple[np.ndarray, ...]:
        arrays = [scene.arrays() for scene in batch]
        arrays += arrays[-1:] * (BATCH - len(arrays))  # one shape, one compilation
        with jax.default_device(cpu):
            return jax.device_get(draw(jax.tree.map(lambda *leaves: np.stack(leaves), *arrays)))

    return rendered


def png_file(image: np.ndarray) -> io.BytesIO:
    """An image as a PNG file in memory, which is what TFDS takes."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png", compress_level=1)
    file.seek(0)
    return file


def box_of(mask: np.ndarray) -> Int[np.ndarray, "4"]:
    """Left, top, right and bottom of a mask's pixels, half open."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.int32)


def _record(
    scene: scenes.Scene, image: np.ndarray, depth: np.ndarray, instances: np.ndarray, index: int
) -> dict[str, Any]:
    arrays = scene.camera.arrays()
    return {
        "image": png_file(image),
        "depth": depth,
        "instances": png_file(instances),
        "objects": [
            {
                "shape": item.shape,
                "color": item.color,
                "size": item.size,
                "place": item.place,
                "box": box_of(instances == i),
            }
            for i, item in enumerate(scene.objects, 1)
        ],
        "caption": scenes.caption(scene, index),
        "intrinsics": render.intrinsics(arrays, len(image)),
        "camera_to_world": arrays.camera_to_world,
    }


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


def build(folder: pathlib.Path, size: int, train: int, validation: int, seed: int) -> Scenes:
    """The scenes of those settings in a folder, rendered now if they are not there yet.

    Read with `build(...).as_data_source(split="train")`.
    """
    config = ScenesConfig(size=size, train=train, validation=validation, seed=seed)
    return prepared(Scenes, config, folder)


def prepared(kind: type[Builder], config: ScenesConfig, folder: pathlib.Path) -> Builder:
    """A builder whose scenes are in a folder, rendered now if they are not there yet."""
    open_builder = functools.partial(
        kind, config=config, data_dir=folder, file_format="array_record"
    )
    with _quiet():
        builder = open_builder()
        # TFDS writes beside this folder and renames at the end: what is in it is complete.
        finished = builder.data_path / "dataset_info.json"
        if finished.exists():
            return builder
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
        return open_builder()
