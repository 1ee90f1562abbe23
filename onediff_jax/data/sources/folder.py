"""Image folders: images, captions, and conditions that were made elsewhere.

Hugging Face's imagefolder convention.  A line of `metadata.jsonl` names an image, says what it
shows, in one text or in a list of several, and may name images that are its conditions or its
edited version:

    {"file_name": "1.png", "text": "a red kite", "depth": "depth/1.png"}
"""

import dataclasses

from onediff_jax.data.example import Caption, Record
from onediff_jax.data.records import (
    READY,
    NamedImages,
    Source,
    SourceSettings,
    StoredImage,
    StoredRecord,
    folder_at,
    numbers_of_split,
)
from onediff_jax.data.sources.listing import ListedFiles, is_caption, listing_in
from onediff_jax.errors import InputError
from onediff_jax.paths import Location
from onediff_jax.settings import setting

# Columns with the name of an image that is a task's second view.
VIEWS = ("blurred", "masked", "small", "canny", "depth", "hed", "pose", "semantic", "boxes")
_TEXTS = {"text": "caption", "instruction": "instruction", "item": "item"}  # column -> field
FILES = (*VIEWS, "edited")
COLUMNS = frozenset((*FILES, *_TEXTS))


@dataclasses.dataclass(frozen=True)
class Folder(SourceSettings):
    """Images with a `metadata.jsonl` or `metadata.csv`, as Hugging Face's imagefolder."""

    path: Location = setting("", "of the folder")
    columns: tuple[str, ...] = setting(
        (), "of the listing that are used; empty: all that are known", choices=sorted(COLUMNS)
    )
    validation: int = setting(64, "images held out, spread evenly over the listing")

    def records(self, split: str) -> Source:
        """The images of a split."""
        return FolderRecords(self, split)


class FolderRecords(Source):
    """Images of a folder, decoded when they are asked for."""

    def __init__(self, settings: Folder, split: str):
        self.folder = folder_at(settings.path, "folder")
        listing = listing_in(self.folder)
        if listing is None:
            raise InputError(
                f"{self.folder / 'metadata.jsonl'} is missing; write a line "
                '{"file_name": "a.png", "text": "a caption"} for every image.'
            )
        self._listing = listing
        self._columns = self._indexed(frozenset(settings.columns) or COLUMNS)
        views = {READY + name for name in self._columns if name in VIEWS}
        others = {_TEXTS.get(name, name) for name in self._columns if name not in VIEWS}
        self.fields = frozenset({"image"} | views | others)
        self._numbers = numbers_of_split(
            split, len(listing), settings.validation, f"images in {self.folder}"
        )

    def _indexed(self, usable: frozenset[str]) -> frozenset[str]:
        """The columns that every entry has; reads the whole listing and looks for its files."""
        used, files = None, ListedFiles(self._listing)
        for entry in self._listing.read():
            columns = usable.intersection(entry)
            if used is None:
                used, named = columns, ("file_name", *columns.intersection(FILES))
            if columns != used:
                self._refuse_some_lines(columns, used)
            for name in columns:
                if not (
                    isinstance(entry[name], str) or (name == "text" and is_caption(entry[name]))
                ):
                    several = " or a list of strings" if name == "text" else ""
                    raise InputError(
                        f"{self._listing.where(-1)}: {name} is {entry[name]!r}; it must be a "
                        f"string{several}."
                    )
            for name in named:
                files.add(entry[name])
        files.refuse_missing()
        return used or frozenset()

    def _refuse_some_lines(self, columns: frozenset[str], used: frozenset[str]) -> None:
        here, first = self._listing.where(-1), self._listing.where(0)
        name = min(columns ^ used)
        with_it, without = (here, first) if name in columns else (first, here)
        raise InputError(
            f"{without} lacks {name!r}, which {with_it} has; write it on every line, or leave it "
            "out of the source's columns."
        )

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Record:
        entry, where = self._listing[self._numbers.item(index)], self.where(index)

        def image(column: str) -> StoredImage:
            file = self.folder / entry[column]
            return StoredImage(f"{where}: {column} {entry[column]}", file.read_bytes)

        views = {name: image(name) for name in self._columns if name in VIEWS}
        texts = {field: entry[name] for name, field in _TEXTS.items() if name in self._columns}
        edited = {"edited": image("edited")} if "edited" in self._columns else {}
        ready = {"pictures": NamedImages(views)} if views else {}
        return StoredRecord({"image": image("file_name")} | texts | edited | ready)

    def caption(self, index: int) -> Caption:
        """The caption of an image, or its several; it is not opened."""
        entry = self._listing[self._numbers.item(index)]
        return entry["text"] if "text" in self._columns else ""

    def where(self, index: int) -> str:
        """The listing and the line that names an image."""
        return self._listing.where(self._numbers.item(index))
