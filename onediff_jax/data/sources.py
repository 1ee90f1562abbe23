"""Where records come from.  A source knows its records by number, and what every one of them holds.

`SOURCES` maps a kind to its settings; settings open one split as a sequence of records.
"""

import dataclasses
import json
import pathlib
import typing
from collections.abc import Sequence

from onediff_jax.data.example import Record
from onediff_jax.data.pictures import picture_in
from onediff_jax.errors import InputError

SPLITS = ("train", "validation")


class Source(Sequence):
    """Records by number; `fields` is what every one of them has."""

    fields: frozenset[str]

    def caption(self, index: int) -> str:
        """The caption of a record, without its pictures where that is cheaper."""
        return self[index].get("caption", "")


@dataclasses.dataclass(frozen=True)
class Scenes:
    """The built-in scenes; built on first use."""

    path: str = "artifacts/scenes"
    size: int = 32  # pixels along each side
    train: int = 10_000  # scenes
    validation: int = 500
    seed: int = 0

    def open(self, split: str) -> Source:
        """The scenes of a split."""
        return SceneRecords(self, split)


class SceneRecords(Source):
    """Scenes read by TFDS at random access, without TensorFlow."""

    fields = frozenset({"image", "depth", "instances", "names", "colors", "places", "caption"})

    def __init__(self, settings: Scenes, split: str):
        from onediff_jax.data import scenes_builder

        builder = scenes_builder.build(
            pathlib.Path(settings.path),
            size=settings.size,
            train=settings.train,
            validation=settings.validation,
            seed=settings.seed,
        )
        self._scenes = builder.as_data_source(split=split)

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> Record:
        scene = self._scenes[index]
        return Record(
            image=scene["image"],
            depth=scene["depth"],
            instances=scene["instances"][..., 0],
            names=words(scene["objects"]["shape"]),
            colors=words(scene["objects"]["colour"]),
            places=words(scene["objects"]["place"]),
            caption=scene["caption"].decode(),
        )


def words(encoded: Sequence[bytes]) -> tuple[str, ...]:
    """Strings as TFDS stores them, decoded."""
    return tuple(word.decode() for word in encoded)


@dataclasses.dataclass(frozen=True)
class Folder:
    """Hugging Face's image folder: pictures with a `metadata.jsonl`.

    Each of its lines is {"file_name": ..., "text": ...}.
    """

    path: str = ""
    validation: int = 64  # pictures held out, spread evenly over the file

    def open(self, split: str) -> Source:
        """The pictures of a split."""
        return FolderRecords(self, split)


class FolderRecords(Source):
    """Captioned pictures, decoded when asked for."""

    fields = frozenset({"image", "caption"})

    def __init__(self, settings: Folder, split: str):
        self.folder = pathlib.Path(settings.path)
        lines = captioned_files(self.folder)
        if settings.validation and len(lines) <= settings.validation:
            raise InputError(
                f"{self.folder} has {len(lines)} pictures and data.sources' validation holds out "
                f"{settings.validation}; set it below {len(lines)}."
            )
        every = len(lines) // settings.validation if settings.validation else len(lines) + 1
        held_out = set(range(0, every * settings.validation, every))
        chosen = (split == "validation", held_out)
        self._lines = [line for i, line in enumerate(lines) if (i in chosen[1]) == chosen[0]]

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Record:
        name, text = self._lines[index]
        return Record(image=picture_in(self.folder / name), caption=text)

    def caption(self, index: int) -> str:
        """The caption of a picture, which is not opened."""
        return self._lines[index][1]


def captioned_files(folder: pathlib.Path) -> list[tuple[str, str]]:
    """File names and captions of an image folder's `metadata.jsonl`, each file looked for.

    Raises InputError with the line at fault.
    """
    listing = folder / "metadata.jsonl"
    if not folder.is_dir():
        raise InputError(
            f"There is no folder {folder}; set data.sources' path to a folder of pictures."
        )
    if not listing.is_file():
        raise InputError(
            f'{listing} is missing; write a line {{"file_name": "a.png", "text": "a caption"}} for '
            "every picture."
        )
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    lines = []
    with listing.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                name, text = entry["file_name"], entry.get("text", "")
            except (ValueError, KeyError, TypeError, AttributeError):  # of bytes or of JSON
                raise InputError(
                    f'{listing}, line {number}: expected {{"file_name": ..., "text": ...}}, found '
                    f"{line.decode(errors='replace').strip()[:80]!r}."
                ) from None
            if not isinstance(name, str) or not isinstance(text, str):
                raise InputError(f"{listing}, line {number}: file_name and text must be strings.")
            if str(pathlib.PurePath(name)) not in files:
                raise InputError(
                    f"{listing}, line {number}: there is no file {name!r} in {folder}."
                )
            lines.append((name, text))
    if not lines:
        raise InputError(f"{listing} names no pictures.")
    return lines


SourceSettings = Scenes | Folder
SOURCES: dict[str, type] = {kind.__name__.lower(): kind for kind in typing.get_args(SourceSettings)}
