"""Identity folders: one folder for every person or thing, with images of it inside.

    DIR/SUBJECT/a.jpg, DIR/SUBJECT/b.jpg ...
    DIR/metadata.jsonl    {"file_name": "SUBJECT/a.jpg", "text": "...", "item": "..."}, optional

A record is an image; its references are the other images of the same subject.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onediff_jax.data.example import Caption, Record
from onediff_jax.data.records import (
    Source,
    SourceSettings,
    StoredImage,
    StoredImages,
    StoredRecord,
    folder_at,
    numbers_of_split,
)
from onediff_jax.data.sources.listing import ListedFiles, Listing, is_caption, listing_in
from onediff_jax.errors import InputError
from onediff_jax.paths import Location
from onediff_jax.settings import setting

SUBJECTS = ("person", "thing")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


@dataclasses.dataclass(frozen=True)
class Identities(SourceSettings):
    """Images of persons or things, a folder for each."""

    path: Location = setting("", "of the folder of folders")
    subjects: str = setting("person", "which task's fields the records have", choices=SUBJECTS)
    least: int = setting(2, "images of a subject; subjects with fewer are left out", least=2)
    validation: int = setting(1, "subjects held out, spread evenly by name")

    def records(self, split: str) -> Source:
        """The images of a split's subjects."""
        return IdentityImages(self, split)


class IdentityImages(Source):
    """Images with the others of the same subject."""

    def __init__(self, settings: Identities, split: str):
        self.folder = folder_at(settings.path, "identities")
        listing = listing_in(self.folder)
        columns: frozenset[str] = frozenset()
        subjects: Mapping[str, Sequence[str | int]]  # names of files, or numbers in the listing
        if listing is None:
            subjects = images_in(self.folder)
        else:
            subjects, columns = listed_images(listing)
        enough = [name for name in sorted(subjects) if len(subjects[name]) >= settings.least]
        if not enough:
            raise InputError(
                f"None of the {len(subjects)} subjects in {self.folder} has {settings.least} "
                "images; lower the source's least."
            )
        numbers = numbers_of_split(
            split,
            len(enough),
            settings.validation,
            f"subjects with enough images in {self.folder}",
        )
        self._names = [enough[i] for i in numbers]
        self._images = [subjects[name] for name in self._names]
        self._ends = np.cumsum([len(images) for images in self._images])
        self._listing, self._columns = listing, columns
        self._thing = settings.subjects == "thing"
        others = "item" if self._thing else "reference"
        self._several = "item_references" if self._thing else "references"
        self._texts = f"{others}_captions"
        self.fields = frozenset(
            {"image", self._several}
            | ({"item"} if self._thing else set())
            | ({"caption", self._texts} if "text" in columns else set())
        )
        self.least = {self._several: settings.least - 1}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _place(self, index: int) -> tuple[int, int]:
        """The subject that a record is of, and the image's number in it."""
        index = range(len(self))[index]
        subject = int(np.searchsorted(self._ends, index, side="right"))
        return subject, index - (int(self._ends[subject - 1]) if subject else 0)

    def _entry(self, subject: int, image: int) -> dict[str, Any]:
        """What is known of an image: its file, and what the listing says."""
        kept = self._images[subject][image]
        if self._listing is not None and isinstance(kept, int):
            return self._listing[kept]
        return {"file_name": f"{self._names[subject]}/{kept}"}

    def __getitem__(self, index: int) -> Record:
        subject, chosen = self._place(index)
        entries = [self._entry(subject, i) for i in range(len(self._images[subject]))]
        own = entries.pop(chosen)
        stored = {
            "image": self._stored(own),
            self._several: StoredImages([self._stored(entry) for entry in entries]),
        }
        if self._thing:
            name = pathlib.PurePath(self._names[subject]).name.replace("_", " ")
            stored["item"] = own.get("item", name)
        if "text" in self._columns:
            stored["caption"] = own["text"]
            stored[self._texts] = [entry["text"] for entry in entries]
        return StoredRecord(stored)

    def _stored(self, entry: dict[str, Any]) -> StoredImage:
        file = self.folder / entry["file_name"]
        return StoredImage(str(file), file.read_bytes)

    def caption(self, index: int) -> Caption:
        """The caption of an image, or its several; it is not opened."""
        return self._entry(*self._place(index))["text"] if "text" in self._columns else ""

    def where(self, index: int) -> str:
        """The image's file, or the line that names it."""
        subject, image = self._place(index)
        kept = self._images[subject][image]
        if self._listing is not None and isinstance(kept, int):
            return self._listing.where(kept)
        return str(self.folder / self._entry(subject, image)["file_name"])


def images_in(folder: pathlib.Path) -> dict[str, list[str]]:
    """Names of the image files in every folder of a folder."""
    subjects = {}
    with os.scandir(folder) as inner:
        for subject in inner:
            if subject.is_dir() and not subject.name.startswith("."):
                with os.scandir(subject) as files:
                    names = sorted(f.name for f in files if f.name.lower().endswith(ENDINGS))
                subjects[subject.name] = names
    return subjects


def listed_images(listing: Listing) -> tuple[dict[str, list[int]], frozenset[str]]:
    """Numbers of the entries of every subject, and which columns the listing has.

    Raises InputError where only some lines have a column, or an image lies in no folder.
    """
    subjects: dict[str, list[int]] = {}
    files, columns = ListedFiles(listing), None
    for number, entry in enumerate(listing.read()):
        has = frozenset(name for name in ("text", "item") if name in entry)
        columns = has if columns is None else columns
        subject, _, _ = entry["file_name"].rpartition("/")
        if has != columns:
            raise InputError(
                f"{listing.where(number)} and {listing.where(0)} do not both have "
                f"{min(has ^ columns)!r}; write it on every line, or on none."
            )
        texts = isinstance(entry.get("item", ""), str) and is_caption(entry.get("text", ""))
        if not subject or not texts:
            raise InputError(
                f"{listing.where(number)}: expected file_name as 'SUBJECT/PICTURE' and texts, "
                f"found {entry}."
            )
        subjects.setdefault(subject, []).append(number)
        files.add(entry["file_name"])
    files.refuse_missing()
    return subjects, columns or frozenset()
