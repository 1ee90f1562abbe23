"""Shards: records of any source in a few large files, read at random access.

A folder of ArrayRecord files and `fields.json`, which says what is in them and is written last, so
that a folder without it is known to be incomplete.  It may lie in object storage (gs://...), which
ArrayRecord reads by itself.  A record is one msgpack map: images are the bytes of their PNG, JPEG
or WebP files, arrays their type, shape and bytes.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
from array_record.python import array_record_module
from etils import epath

from onediff_jax.data.example import Record
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
from onediff_jax.data.sources.arrayrecord import RecordFiles, sizes_in
from onediff_jax.data.validate import refuse_wrong_camera
from onediff_jax.errors import InputError
from onediff_jax.ops.cameras import Camera
from onediff_jax.paths import Location
from onediff_jax.settings import setting

MANIFEST = "fields.json"
FORMAT = 1  # goes up when older readers would misread
SHARD = 512 * 2**20  # bytes of records after which a file is closed
WRITING = "group_size:1,zstd:3"  # a group is what must be read for one record
HALF = np.dtype(ml_dtypes.bfloat16)

PICTURE = ("image", "edited")
PICTURES = ("references", "item_references", "frames")
ARRAYS = ("depth", "instances", "boxes", "keypoints")
TEXTS = ("caption", "instruction", "item")
SEVERAL_TEXTS = ("names", "colors", "places", "reference_captions", "item_captions")


# --- one record -----------------------------------------------------------------------------------


def packed(record: Record) -> bytes:
    """A record as bytes; images that are kept in files stay as they are, others become PNG."""
    kept = record.stored if isinstance(record, StoredRecord) else {}
    values: dict[str, Any] = {}
    for name in record:
        if name in PICTURE:
            stored = kept.get(name)
            values[name] = encoded(stored if isinstance(stored, StoredImage) else record[name])
        elif name == "pictures":
            views = getattr(record[name], "stored", record[name])
            values[name] = {view: encoded(image) for view, image in views.items()}
        elif name in PICTURES:
            images = getattr(record[name], "stored", record[name])
            values[name] = [encoded(image) for image in images]
        elif name in ARRAYS:
            values[name] = packed_array(record[name])
        elif name == "cameras":
            values[name] = [[packed_array(part) for part in camera] for camera in record[name]]
        elif name in SEVERAL_TEXTS:
            values[name] = list(record[name])
        elif name in TEXTS:
            values[name] = record[name]
        else:
            raise InputError(f"A record has a field {name!r}, which shards have no form for.")
    return msgpack.packb(values)


def unpacked(data: bytes, where: str) -> StoredRecord:
    """The inverse of `packed`: a record whose images are decoded when they are asked for."""
    values = msgpack.unpackb(data)

    def image(name: str, content: bytes) -> StoredImage:
        return StoredImage(f"{where}: {name}", lambda: content)

    for name, value in values.items():
        if name in PICTURE:
            values[name] = image(name, value)
        elif name == "pictures":
            views = {view: image(f"pictures.{view}", data) for view, data in value.items()}
            values[name] = NamedImages(views)
        elif name in PICTURES:
            images = [image(f"{name}[{i}]", data) for i, data in enumerate(value)]
            values[name] = StoredImages(images)
        elif name in ARRAYS:
            values[name] = unpacked_array(value)
        elif name == "cameras":
            values[name] = [Camera(*map(unpacked_array, parts)) for parts in value]
        elif name in SEVERAL_TEXTS:
            values[name] = tuple(value)
    return StoredRecord(values)


def encoded(image: np.ndarray | StoredImage) -> bytes:
    """The bytes of a image's file."""
    return image.encoded() if isinstance(image, StoredImage) else png(image)


def packed_array(array: np.ndarray) -> list[Any]:
    """An array's type, shape and bytes, little endian."""
    if array.dtype == HALF:  # NumPy has no name of its own for it
        return ["bfloat16", list(array.shape), array.tobytes()]
    array = np.ascontiguousarray(array, np.dtype(array.dtype).newbyteorder("<"))
    return [array.dtype.str, list(array.shape), array.tobytes()]


def unpacked_array(parts: Sequence[Any]) -> np.ndarray:
    """The inverse of `packed_array`."""
    kind, shape, data = parts
    return np.frombuffer(data, HALF if kind == "bfloat16" else kind).reshape(shape)


# --- a folder of them -----------------------------------------------------------------------------


def write_shards(
    folder: pathlib.Path, splits: Mapping[str, tuple[Source, Iterable[bytes]]], size: int = SHARD
) -> dict[str, int]:
    """Writes a folder of shards; says how many records each split has.

    `splits` has for every split its source, and its records as `packed` bytes.  A file is closed
    once it holds `size` bytes.
    """
    sources = [source for source, _ in splits.values()]
    fields = frozenset.intersection(*(source.fields for source in sources))
    least = {
        name: min(source.least[name] for source in sources)
        for name in set.intersection(*(set(source.least) for source in sources))
    }
    shards = {
        split: list(written_files(folder, split, records, size))
        for split, (_, records) in splits.items()
    }
    manifest = {"format": FORMAT, "fields": sorted(fields), "least": least, "shards": shards}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return {split: sum(file["records"] for file in files) for split, files in shards.items()}


def written_files(
    folder: pathlib.Path, split: str, records: Iterable[bytes], size: int
) -> Iterator[dict[str, Any]]:
    """Writes a split's files; yields what the manifest says of each: name, records, checksum."""
    remaining, number = iter(records), 0
    while (record := next(remaining, None)) is not None:
        file = folder / f"{split}-{number:05}.array_record"
        writer = array_record_module.ArrayRecordWriter(str(file), WRITING)
        count = total = 0
        while record is not None:
            writer.write(record)
            count, total = count + 1, total + len(record)
            record = next(remaining, None) if total < size else None
        writer.close()
        yield {"file": file.name, "records": count, "bytes": file.stat().st_size} | {
            "sha256": checksum(file)
        }
        number += 1


def checksum(file: pathlib.PurePath) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@dataclasses.dataclass(frozen=True)
class Shards(SourceSettings):
    """Records that `make_shards` wrote; the splits are those of their source."""

    path: Location = setting("", "of the folder with fields.json")

    def records(self, split: str) -> Source:
        """The records of a split."""
        return ShardRecords(self, split)


class ShardRecords(Source):
    """Records of a folder of shards."""

    def __init__(self, settings: Shards, split: str):
        self.folder = few_files_at(settings.path, "shards")
        manifest = manifest_of(self.folder)
        if split not in manifest["shards"]:
            raise InputError(
                f"{self.folder} has no split {split!r}; it has {', '.join(manifest['shards'])}."
            )
        self.fields, self.least = frozenset(manifest["fields"]), dict(manifest["least"])
        self._shards = manifest["shards"][split]
        refuse_changed(self.folder, self._shards, sizes_in(self.folder))
        names = [str(self.folder / shard["file"]) for shard in self._shards]
        self._records = RecordFiles(names, [shard["records"] for shard in self._shards])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        where = self.where(index)
        try:
            record = unpacked(self._records[index], where)
        except (RuntimeError, ValueError, TypeError) as error:
            raise InputError(
                f"{where} is damaged ({' '.join(str(error).split())[:200]}); make the shards again."
            ) from None
        for i, camera in enumerate(record.get("cameras", ())):
            refuse_wrong_camera(camera, f"{where}: cameras[{i}]")
        return record

    def where(self, index: int) -> str:
        """The file and the number of a record in it."""
        shard, number = self._records.place(index)
        return f"{self.folder / self._shards[shard]['file']}, record {number}"

    def damaged(self) -> list[str]:
        """The files whose content is not what was written; reads all of them."""
        files = ((self.folder / shard["file"], shard["sha256"]) for shard in self._shards)
        return [str(file) for file, written in files if checksum(file) != written]


def manifest_of(folder: epath.Path) -> dict[str, Any]:
    """What `fields.json` says; raises InputError where the folder is not one of whole shards."""
    file = folder / MANIFEST
    if not file.is_file():
        raise InputError(
            f"{file} is missing, so the shards in {folder} are not complete; make them with "
            "`python -m onediff_jax make_shards`."
        )
    try:
        manifest = json.loads(file.read_bytes())
        if manifest["format"] != FORMAT:
            raise InputError(
                f"{file} is of format {manifest['format']!r} and this program reads {FORMAT}; make "
                "the shards again."
            )
        for shards in manifest["shards"].values():
            for shard in shards:
                shard["file"], shard["records"], shard["bytes"], shard["sha256"]
        manifest["fields"], manifest["least"]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} lacks {error}; make the shards again.") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{file} is not JSON ({error}); make the shards again.") from None
    return manifest


def refuse_changed(
    folder: epath.Path,
    shards: Sequence[Mapping[str, Any]],
    sizes: Mapping[str, int],
    manifest: str = MANIFEST,
) -> None:
    """Raises where a file is missing or has another size than when it was written.

    `sizes` are those of the files that are in the folder now.
    """
    for shard in shards:
        size = sizes.get(shard["file"])
        if size != shard["bytes"]:
            found = "missing" if size is None else f"{size} bytes long"
            raise InputError(
                f"{folder / shard['file']} is {found}; {manifest} says {shard['bytes']} bytes.  "
                "Copy it again, or make the shards again."
            )
