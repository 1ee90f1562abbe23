"""Reads and writes ArrayRecord files: many records in each, read by number, by many threads.

Caches, shards and TFDS data sets are such files.  A process has one list of open files for all of
them: the most recently read files stay open, at most half as many as the system allows.  (grain's
and TFDS's own `ArrayRecordDataSource` keep every file open that was ever read.)  Files in object
storage (gs://...) are read by ArrayRecord itself.
"""

import collections
import errno
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import fsspec
import ml_dtypes
import numpy as np
from array_record.python import array_record_module
from etils import epath

from onediff_jax.errors import InputError

OPEN = 1024  # files that stay open at most
LIMIT = 2**20  # open files that are asked for at most
DAMAGED = ("Corrupted", "hash mismatch", "out of bound", "Invalid", "truncated")  # said by readers
READING = "readahead_buffer_size:0,max_parallelism:0"
WRITING = "group_size:1,zstd:3"  # a group is what must be read for one record
SHARD = 512 * 2**20  # bytes of records after which a file is closed
FORMAT = 1  # of records and manifests; goes up when older readers would misread
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

FileFacts = Mapping[str, Any]  # of a manifest: file (its name), records, bytes, and its sha256


# --- files ----------------------------------------------------------------------------------------


def write_records(file: pathlib.PurePath, records: Iterable[bytes]) -> int:
    """Writes a file of records; returns how many there are."""
    writer, count = array_record_module.ArrayRecordWriter(str(file), WRITING), 0
    for record in records:
        writer.write(record)
        count += 1
    writer.close()
    return count


def file_facts(file: pathlib.PurePath, records: int, sha256: str = "") -> dict[str, Any]:
    """What a manifest says of a file of so many records."""
    size = {"file": file.name, "records": records, "bytes": epath.Path(file).stat().length}
    return size | {"sha256": sha256 or checksum(file)}


def checksum(file: pathlib.PurePath) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with epath.Path(file).open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def refuse_changed(
    folder: epath.Path, files: Sequence[FileFacts], sizes: Mapping[str, int], manifest: str
) -> None:
    """Raises InputError where a file is missing or has another size than its manifest says.

    `sizes` are those of the files that are in the folder now.
    """
    for facts in files:
        size = sizes.get(facts["file"])
        if size != facts["bytes"]:
            found = "missing" if size is None else f"{size} bytes long"
            raise InputError(
                f"{folder / facts['file']} is {found}; {manifest} says {facts['bytes']} bytes.  "
                "Copy it again, or make it again."
            )


def manifest_in(file: epath.Path, entries: Sequence[str], remedy: str) -> dict[str, Any]:
    """The manifest in a file, which is written last: without it a folder is not complete.

    Raises InputError, with the remedy, where there is none, or none of this format that has the
    entries.
    """
    if not file.is_file():
        raise InputError(f"{file} is missing, so {file.parent} is not complete; {remedy}.")
    try:
        manifest = json.loads(file.read_bytes())
        missing = [entry for entry in ("format", *entries) if entry not in manifest]
    except (ValueError, TypeError) as error:
        raise InputError(f"{file} is not JSON of a manifest ({error}); {remedy}.") from None
    if missing:
        raise InputError(f"{file} lacks {missing[0]!r}; {remedy}.")
    if manifest["format"] != FORMAT:
        raise InputError(
            f"{file} is of format {manifest['format']!r} and this program reads {FORMAT}; {remedy}."
        )
    return manifest


def array_parts(array: np.ndarray) -> list[Any]:
    """An array's type, shape and bytes, little endian."""
    if array.dtype == BFLOAT16:  # NumPy has no name of its own for it
        return ["bfloat16", list(array.shape), array.tobytes()]
    array = np.ascontiguousarray(array, np.dtype(array.dtype).newbyteorder("<"))
    return [array.dtype.str, list(array.shape), array.tobytes()]


def array_of(parts: Sequence[Any]) -> np.ndarray:
    """The inverse of `array_parts`."""
    kind, shape, data = parts
    return np.frombuffer(data, BFLOAT16 if kind == "bfloat16" else kind).reshape(shape)


# --- reading --------------------------------------------------------------------------------------


class RecordFiles(Sequence):
    """Records of ArrayRecord files, as bytes, by number.

    `counts` has the number of records used of each file, `firsts` the first record used of each;
    `remedy` says what to do about a damaged one.  It holds no open file itself, so it can be sent
    to other processes.
    """

    def __init__(
        self,
        files: Sequence[str],
        counts: Sequence[int],
        firsts: Sequence[int] | None = None,
        remedy: str = "copy it again",
    ):
        self._files = [ReadFile(file) for file in files]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._firsts = firsts or [0] * len(files)
        self._remedy = remedy

    @classmethod
    def listed(cls, folder: epath.Path, files: Sequence[FileFacts], remedy: str) -> "RecordFiles":
        """Those of files that a manifest lists."""
        names = [str(folder / facts["file"]) for facts in files]
        return cls(names, [facts["records"] for facts in files], remedy=remedy)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> bytes:
        """A record; raises InputError where its bytes are damaged, and OSError otherwise."""
        file, number = self._place(index)
        try:
            return file.reader().read([number])[0]
        except (IndexError, RuntimeError) as error:
            file.close()  # a reader that failed once fails again
            said = " ".join(str(error).split())[:200]
            if isinstance(error, IndexError) or any(word in said for word in DAMAGED):
                raise InputError(
                    f"{self.where(index)} is damaged ({said}); {self._remedy}."
                ) from None
            file.path.stat()  # raises FileNotFoundError
            raise OSError(errno.EIO, said, str(file.path)) from None

    def where(self, index: int) -> str:
        """The file that holds a record, and the record's number in it."""
        file, number = self._place(index)
        return f"{file.path}, record {number}"

    def _place(self, index: int) -> tuple["ReadFile", int]:
        index = range(len(self))[index]
        file = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[file - 1]) if file else 0
        return self._files[file], index - before + self._firsts[file]


class ReadFile:
    """A file that is opened when it is read, and closed when others have been read since."""

    def __init__(self, file: str):
        self.path = epath.Path(file)
        self._reader: Any = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return type(self), (str(self.path),)

    def reader(self) -> Any:
        """Its reader, which stays open for as long as the caller holds it."""
        with self._lock:  # threads that need other files go on
            if self._reader is None:
                self._reader = array_record_module.ArrayRecordReader(str(self.path), READING)
            found = self._reader
        READ.touch(self)  # after it was opened, so that no open file is missing there
        return found

    def close(self) -> None:
        """Closes it, once nobody reads it any more."""
        with self._lock:
            self._reader = None


class ReadFiles:
    """A process's most recently read files, oldest first; closes those beyond the limit."""

    def __init__(self) -> None:
        self._files: collections.OrderedDict[ReadFile, None] = collections.OrderedDict()
        self._most = 0  # not asked for yet
        self._lock = threading.Lock()

    def touch(self, file: ReadFile) -> None:
        """Makes a file the newest."""
        with self._lock:
            self._most = self._most or min(OPEN, raised_limit() // 2)
            self._files[file] = None
            self._files.move_to_end(file)
            old = [self._files.popitem(last=False)[0] for _ in range(len(self) - self._most)]
        for each in old:
            each.close()

    def __len__(self) -> int:
        return len(self._files)


READ = ReadFiles()


def raised_limit() -> int:
    """How many files this process may have open, after asking for as many as the system allows.

    The usual soft limit of 1,024 is for programs that use `select`, which fails beyond it; other
    programs are meant to raise it to the hard limit.
    """
    try:
        import resource
    except ImportError:  # Windows
        return 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = LIMIT if hard == resource.RLIM_INFINITY else min(hard, LIMIT)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # macOS refuses more than its kernel has
        return soft
    return wanted


def sizes_in(folder: epath.Path) -> dict[str, int]:
    """Bytes of every file directly in a folder, by name: one listing in object storage."""
    if "://" in str(folder):
        storage, path = fsspec.core.url_to_fs(str(folder))
        listed = storage.ls(path, detail=True)
        return {
            pathlib.PurePosixPath(entry["name"]).name: entry["size"]
            for entry in listed
            if entry["type"] == "file"
        }
    with os.scandir(folder) as listed:
        return {entry.name: entry.stat().st_size for entry in listed if entry.is_file()}
