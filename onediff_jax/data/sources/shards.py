"""Shards: records of any source in a few large files, read at random access.

A folder of ArrayRecord files and `fields.json`, which says what is in them and is written last, so
that a folder without it is known to be incomplete.  A record is one msgpack map: images are the
bytes of their PNG, JPEG or WebP files, arrays their type, shape and bytes.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgpack
import numpy as np
from etils import epath

from onediff_jax.data.example import FIELDS, Record
from onediff_jax.data.images import png
from onediff_jax.data.records import (
    NamedImages,
    Source,
    SourceSettings,
    StoredImage,
    StoredImages,
    StoredRecord,
    few_files_at,
)
from onediff_jax.data.sources.arrayrecord import (
    FORMAT,
    SHARD,
    RecordFiles,
    array_of,
    array_parts,
    checksum,
    file_facts,
    manifest_in,
    refuse_changed,
    sizes_in,
    write_records,
)
from onediff_jax.errors import InputError
from onediff_jax.ops.cameras import Camera
from onediff_jax.paths import Location
from onediff_jax.settings import setting

MANIFEST = "fields.json"
_REMEDY = "make the shards again: `python -m onediff_jax make_shards`"


# --- one record -----------------------------------------------------------------------------------


def record_bytes(record: Record) -> bytes:
    """A record as bytes; images that are kept in files stay as they are, others become PNG."""
    kept = record.stored if isinstance(record, StoredRecord) else {}
    values: dict[str, Any] = {}
    for name in record:
        if name not in FIELDS:
            raise InputError(f"A record has a field {name!r}; fields are {', '.join(FIELDS)}.")
        stored = kept.get(name)
        value: Any = stored if isinstance(stored, StoredImage) else record[name]
        value = getattr(value, "stored", value)  # images that are kept in files
        kind = FIELDS[name].kind
        if kind == "image":
            value = image_bytes(value)
        elif kind == "named images":
            value = {view: image_bytes(image) for view, image in value.items()}
        elif kind == "images":
            value = [image_bytes(image) for image in value]
        elif kind == "array":
            value = array_parts(value)
        elif kind == "cameras":
            value = [[array_parts(part) for part in camera] for camera in value]
        values[name] = value
    return msgpack.packb(values)


def stored_record(data: bytes, where: str) -> StoredRecord:
    """The inverse of `record_bytes`: a record whose images are decoded when they are asked for."""
    values = msgpack.unpackb(data)

    def image(name: str, content: bytes) -> StoredImage:
        return StoredImage(f"{where}: {name}", lambda: content)

    for name, value in values.items():
        kind = FIELDS[name].kind
        if kind == "image":
            values[name] = image(name, value)
        elif kind == "named images":
            views = {view: image(f"{name}.{view}", data) for view, data in value.items()}
            values[name] = NamedImages(views)
        elif kind == "images":
            images = [image(f"{name}[{i}]", data) for i, data in enumerate(value)]
            values[name] = StoredImages(images)
        elif kind == "array":
            values[name] = array_of(value)
        elif kind == "cameras":
            values[name] = [Camera(*map(array_of, parts)) for parts in value]
        elif kind in ("texts", "captions"):
            values[name] = tuple(value)
    return StoredRecord(values)


def image_bytes(image: np.ndarray | StoredImage) -> bytes:
    """The bytes of an image's file."""
    return image.encoded() if isinstance(image, StoredImage) else png(image)


# --- a folder of them -----------------------------------------------------------------------------


def write_shards(
    folder: pathlib.Path, splits: Mapping[str, tuple[Source, Iterable[bytes]]], size: int = SHARD
) -> dict[str, int]:
    """Writes a folder of shards; says how many records each split has.

    `splits` has for every split its source, and its records as `record_bytes`.  A file is closed
    once it holds `size` bytes.
    """
    sources = [source for source, _ in splits.values()]
    fields = frozenset.intersection(*(source.fields for source in sources))
    least = {
        name: min(source.least[name] for source in sources)
        for name in set.intersection(*(set(source.least) for source in sources))
    }
    shards: dict[str, list[dict[str, Any]]] = {split: [] for split in splits}
    for split, (_, records) in splits.items():
        remaining = iter(records)
        for first in remaining:
            file = epath.Path(folder) / f"{split}-{len(shards[split]):05}.array_record"
            count = write_records(file, up_to_size(first, remaining, size))
            shards[split].append(file_facts(file, count))
    manifest = {"format": FORMAT, "fields": sorted(fields), "least": least, "shards": shards}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return {split: sum(file["records"] for file in files) for split, files in shards.items()}


def up_to_size(first: bytes, following: Iterator[bytes], size: int) -> Iterator[bytes]:
    """A record and those that follow it, until they have `size` bytes."""
    yield first
    total = len(first)
    while total < size and (record := next(following, None)) is not None:
        yield record
        total += len(record)


@dataclasses.dataclass(frozen=True)
class Shards(SourceSettings):
    """Records that `python -m onediff_jax make_shards` wrote; its source's splits."""

    path: Location = setting("", "of the folder with fields.json")

    def records(self, split: str) -> Source:
        """The records of a split."""
        return ShardRecords(self, split)


class ShardRecords(Source):
    """Records of a folder of shards."""

    def __init__(self, settings: Shards, split: str):
        self.folder = few_files_at(settings.path, "shards")
        manifest = manifest_in(self.folder / MANIFEST, ("fields", "least", "shards"), _REMEDY)
        if split not in manifest["shards"]:
            raise InputError(
                f"{self.folder} has no split {split!r}; it has {', '.join(manifest['shards'])}."
            )
        self.fields, self.least = frozenset(manifest["fields"]), dict(manifest["least"])
        self._shards = manifest["shards"][split]
        refuse_changed(self.folder, self._shards, sizes_in(self.folder), MANIFEST)
        self._records = RecordFiles.listed(self.folder, self._shards, _REMEDY)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return stored_record(self._records[index], self.where(index))

    def where(self, index: int) -> str:
        """The file and the number of a record in it."""
        return self._records.where(index)

    def damaged(self) -> list[str]:
        """The files whose content is not what was written; reads all of them."""
        files = ((self.folder / shard["file"], shard["sha256"]) for shard in self._shards)
        return [str(file) for file, written in files if checksum(file) != written]
