"""The built-in scenes as a source: a TFDS data set, built on first use."""

import dataclasses
import functools
import pathlib
from typing import Any

from onediff_jax.data.records import (
    Source,
    SourceSettings,
    StoredImages,
    StoredRecord,
    refuse_remote,
)
from onediff_jax.data.scenes.worlds import WORLDS
from onediff_jax.data.sources.tfds import Tfds, TfdsRecords
from onediff_jax.errors import InputError
from onediff_jax.paths import Location
from onediff_jax.settings import setting

GROUPS = {  # what `groups` chooses -> fields of the other scenes of a scene's group
    "all": (),
    "figures": ("references", "reference_captions"),
    "objects": ("item_references", "item_captions"),
}
CAPTION_FEATURES = {"short": "caption", "long": "long_caption"}  # features of the stored scenes
STORED = {  # fields of a record -> features that every world has
    "image": "image",
    "depth": "depth",
    "instances": "instances",
    "names": "objects/name",
    "colors": "objects/color",
    "places": "objects/place",
    "boxes": "objects/box",
}


@dataclasses.dataclass(frozen=True)
class Scenes(SourceSettings):
    """The built-in scenes; built on first use.

    `content` is "basic" (spheres and boxes, one view) or "full" (figures, more shapes, edits,
    `views` cameras).  Of full scenes `groups` chooses those that share a figure or an object; only
    these have references.  Sources that differ in `groups` alone read the same files.
    """

    path: Location = setting("artifacts/scenes", "folder of the stored scenes")
    size: int = setting(32, "pixels along each side", least=8)
    train: int = setting(10_000, "scenes to train on", least=1)
    validation: int = setting(500, "scenes held out", least=1)
    seed: int = setting(0, "of the scenes", least=0)
    content: str = setting("basic", "of a scene", choices=WORLDS)
    views: int = setting(1, "cameras of a full scene", least=1)
    groups: str = setting("all", "full scenes that share something", choices=GROUPS)
    captions: str = setting("short", "long ones are of full scenes", choices=CAPTION_FEATURES)

    def __post_init__(self):
        super().__post_init__()
        asked = (self.views, self.groups, self.captions)
        if self.content == "basic" and asked != (1, "all", "short"):
            raise InputError(
                f"Basic scenes have one view, no groups and short captions, not views={self.views} "
                f"and groups={self.groups!r} with captions={self.captions!r}; set data.sources' "
                'content to "full".'
            )

    def records(self, split: str) -> Source:
        """The scenes of a split; raises InputError where they would be built in object storage."""
        refuse_remote(self.path, "scenes")
        return SceneRecords(self, split)


def stored_fields(scenes: Scenes) -> dict[str, str]:
    """The fields of a record, and the features of the stored scenes that they are read from."""
    fields = STORED | {"caption": CAPTION_FEATURES[scenes.captions]}
    if WORLDS[scenes.content].edits:
        fields |= {"edited": "edited", "instruction": "instruction"}
    if scenes.views > 1:
        fields |= {"frames": "frames", "cameras": "cameras"}
    if scenes.groups != "all":
        name = {"figures": "keypoints", "objects": "item"}[scenes.groups]
        fields[name] = name
    return fields


class SceneRecords(TfdsRecords):
    """Scenes read by TFDS; where a group is chosen, with the other scenes of each one's group."""

    def __init__(self, scenes: Scenes, split: str):
        from onediff_jax.data.scenes.build import build

        name = build(
            pathlib.Path(scenes.path),
            content=scenes.content,
            size=scenes.size,
            train=scenes.train,
            validation=scenes.validation,
            seed=scenes.seed,
            views=scenes.views,
        )
        fields = stored_fields(scenes)
        super().__init__(Tfds(scenes.path, name, fields, held_out="validation"), split)
        self._scenes, self._split = scenes, split
        world, self._mates = WORLDS[scenes.content], GROUPS[scenes.groups]
        self._group = world.group
        self.least = {"frames": scenes.views}
        if self._mates:
            chosen = [world.kind(i) == scenes.groups for i in self._numbers.tolist()]
            self._numbers = self._numbers[chosen]
            self.fields |= {*self._mates}
            self.least[self._mates[0]] = self._group - 1

    def __reduce__(self) -> tuple[Any, tuple[Scenes, str]]:
        return Scenes.open, (self._scenes, self._split)

    def __getitem__(self, index: int) -> StoredRecord:
        record = super().__getitem__(index)
        if not self._mates:
            return record

        @functools.cache
        def mates() -> list[StoredRecord]:
            first = index - index % self._group
            group = range(first, first + self._group)
            return [super(SceneRecords, self).__getitem__(i) for i in group if i != index]

        images, captions = self._mates
        more = {
            images: lambda: StoredImages([mate.stored["image"] for mate in mates()]),
            captions: lambda: tuple(mate["caption"] for mate in mates()),
        }
        return StoredRecord({**record.stored, **more})
