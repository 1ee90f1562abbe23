"""The built-in scenes as a source: records whose fields are decoded when they are asked for."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from onediff_jax.data.example import Record
from onediff_jax.data.records import Source, SourceSettings, StoredRecord, refuse_remote
from onediff_jax.errors import InputError
from onediff_jax.ops.cameras import Camera
from onediff_jax.paths import Location

CONTENTS = ("basic", "full")
GROUPS = ("all", "figures", "objects")
CAPTIONS = {"short": "caption", "long": "long_caption"}  # fields of the stored scenes


@dataclasses.dataclass(frozen=True)
class Scenes(SourceSettings):
    """The built-in scenes; built on first use.

    `content` is "basic" (spheres and boxes, one view) or "full" (figures, more shapes, edits,
    `views` cameras).  Of full scenes `groups` chooses those that share a figure or an object; only
    these have references.  Sources that differ in `groups` alone read the same files.
    """

    path: Location = "artifacts/scenes"
    size: int = 32  # pixels along each side
    train: int = 10_000  # scenes
    validation: int = 500
    seed: int = 0
    content: str = "basic"
    views: int = 1
    groups: str = "all"
    captions: str = "short"  # or "long", of full scenes

    def __post_init__(self):
        super().__post_init__()
        kinds = (("content", CONTENTS), ("groups", GROUPS), ("captions", CAPTIONS))
        for name, known in kinds:
            if getattr(self, name) not in known:
                raise InputError(
                    f"data.sources' {name} is {getattr(self, name)!r}; it can be "
                    f"{', '.join(known)}."
                )
        if self.content == "basic" and (self.views, self.groups) != (1, "all"):
            raise InputError(
                f"Basic scenes have one view and no groups, not views={self.views} and "
                f'groups={self.groups!r}; set data.sources\' content to "full".'
            )

    def records(self, split: str) -> Source:
        """The scenes of a split; raises InputError where they would be built in object storage."""
        refuse_remote(self.path, "scenes")
        return (FullRecords if self.content == "full" else SceneRecords)(self, split)


class SceneRecords(Source):
    """Basic scenes read by TFDS at random access, without TensorFlow."""

    # The stored feature that a field is made of, and how.
    stored: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
        "image": ("image", lambda scene: scene["image"]),
        "depth": ("depth", lambda scene: scene["depth"]),
        "instances": ("instances", lambda scene: scene["instances"][..., 0]),
        "names": ("objects", lambda scene: words(scene["objects"]["shape"])),
        "colors": ("objects", lambda scene: words(scene["objects"]["color"])),
        "places": ("objects", lambda scene: words(scene["objects"]["place"])),
        "caption": ("caption", lambda scene: scene["caption"].decode()),
    }
    fields = frozenset(stored)

    def __init__(self, settings: Scenes, split: str):
        from onediff_jax.data.scenes import basic_builder as scenes_builder

        builder = scenes_builder.build(
            pathlib.Path(settings.path),
            size=settings.size,
            train=settings.train,
            validation=settings.validation,
            seed=settings.seed,
        )
        import tensorflow_datasets as tfds

        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        self._scenes = builder.as_data_source(split=split, deserialize_method=raw)
        self._stored = builder.info.features
        self._parts: dict[frozenset[str], Any] = {}

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> Record:
        return self.taken(index, self.fields)

    def taken(self, index: int, fields: Iterable[str]) -> Record:
        """Some fields of a scene; nothing else is decoded, which halves the time."""
        part = self._part(frozenset(fields))
        scene = part.deserialize_example_np(self._scenes[index])
        return Record(**{name: self.stored[name][1](scene) for name in fields})

    def caption(self, index: int) -> str:
        """The caption of a scene, no image of which is decoded."""
        return self.taken(index, ("caption",))["caption"]

    def _part(self, fields: frozenset[str]) -> Any:
        """The stored features that these fields are made of."""
        if fields not in self._parts:
            import tensorflow_datasets as tfds

            names = {self.stored[name][0] for name in fields}
            part = {name: self._stored[name] for name in self._stored if name in names}
            self._parts[fields] = tfds.features.FeaturesDict(part)
        return self._parts[fields]


class FullRecords(Source):
    """Full scenes read by TFDS at random access; images are decoded when asked for."""

    fields = frozenset(
        {"image", "caption", "long_caption", "depth", "normals", "instances", "names", "colors"}
        | {"places", "boxes", "edited", "instruction", "frames", "cameras"}
    )
    grouped = {
        "all": frozenset(),
        "figures": frozenset({"keypoints", "references", "reference_captions"}),
        "objects": frozenset({"item", "item_references", "item_captions"}),
    }

    def __init__(self, settings: Scenes, split: str):
        import tensorflow_datasets as tfds

        from onediff_jax.data.scenes import build as full_builder
        from onediff_jax.data.scenes import placement as full_scenes

        builder = full_builder.build(
            pathlib.Path(settings.path),
            size=settings.size,
            train=settings.train,
            validation=settings.validation,
            seed=settings.seed,
            views=settings.views,
        )
        self.fields = FullRecords.fields | self.grouped[settings.groups]
        self._caption = CAPTIONS[settings.captions]
        self._features = builder.info.features
        images = ("image", "more_views", "normals", "instances", "edited")
        self._scenes = builder.as_data_source(
            split=split, decoders={name: tfds.decode.SkipDecoding() for name in images}
        )
        self._views, self._group = settings.views, full_scenes.GROUP
        mates = self._group - 1
        self.least = {"frames": self._views, "references": mates, "item_references": mates}
        self._numbers = [
            i
            for i in range(len(self._scenes))
            if settings.groups in ("all", full_scenes.kind_of(i))
        ]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Record:
        scene, number = self._scenes[self._numbers[index]], self._numbers[index]

        def frames() -> tuple[np.ndarray, ...]:
            more = self._image(scene, "more_views") if self._views > 1 else ()
            size = len(record["image"])
            return (record["image"], *(more[i : i + size] for i in range(0, len(more), size)))

        def cameras() -> tuple[Camera, ...]:
            pairs = zip(scene["intrinsics"], scene["camera_to_world"], strict=True)
            return tuple(Camera(*pair) for pair in pairs)

        makers = {
            "image": lambda: self._image(scene, "image"),
            "caption": lambda: scene[self._caption].decode(),
            "long_caption": lambda: scene["long_caption"].decode(),
            "depth": lambda: scene["depth"],
            "normals": lambda: (self._image(scene, "normals").astype(np.float32) - 128) / 127,
            "instances": lambda: self._image(scene, "instances")[..., 0],
            "names": lambda: words(scene["things"]["name"]),
            "colors": lambda: words(scene["things"]["color"]),
            "places": lambda: words(scene["things"]["place"]),
            "boxes": lambda: np.asarray(scene["things"]["box"], np.float32).reshape(-1, 4),
            "keypoints": lambda: scene["keypoints"],
            "edited": lambda: self._image(scene, "edited"),
            "instruction": lambda: scene["instruction"].decode(),
            "frames": frames,
            "cameras": cameras,
            "item": lambda: scene["item"].decode(),
            "references": lambda: self._of_mates(number, self._image_of),
            "reference_captions": lambda: self._of_mates(number, self._caption_of),
        }
        makers["item_references"], makers["item_captions"] = (
            makers[name] for name in ("references", "reference_captions")
        )
        record = StoredRecord({name: makers[name] for name in sorted(self.fields)})
        return record

    def caption(self, index: int) -> str:
        """The caption of a scene, no image of which is decoded."""
        return self[index]["caption"]

    def _image(self, scene: Mapping[str, Any], name: str) -> np.ndarray:
        return self._features[name].decode_example_np(scene[name])

    def _image_of(self, scene: Mapping[str, Any]) -> np.ndarray:
        return self._image(scene, "image")

    def _caption_of(self, scene: Mapping[str, Any]) -> str:
        return scene[self._caption].decode()

    def _of_mates(self, number: int, make: Callable[[Any], Any]) -> tuple[Any, ...]:
        """Something of every other scene of a scene's group."""
        first = number - number % self._group
        mates = range(first, first + self._group)
        return tuple(make(self._scenes[mate]) for mate in mates if mate != number)


def words(encoded: Sequence[bytes]) -> tuple[str, ...]:
    """Strings as TFDS stores them, decoded."""
    return tuple(word.decode() for word in encoded)
