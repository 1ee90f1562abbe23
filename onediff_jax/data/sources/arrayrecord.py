"""Records of ArrayRecord files by number, for any number of threads and of files.

A process has one list of open files for caches, shards and TFDS.  The most recently read files stay
open, at most half as many as the system allows.
"""

import collections
import errno
import os
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

import fsspec
import numpy as np
from array_record.python import array_record_module
from etils import epath

OPEN = 1024  # files that stay open at most
LIMIT = 2**20  # open files that are asked for at most
DAMAGED = ("Corrupted", "hash mismatch", "out of bound", "Invalid", "truncated")  # said by readers
READING = "readahead_buffer_size:0,max_parallelism:0"


class RecordFiles(Sequence):
    """Records of ArrayRecord files, as bytes, by number.

    `counts` has the number of records used of each file, `firsts` the first record used of each.
    It holds no open file itself, so it can be sent to other processes.
    """

    def __init__(
        self, files: Sequence[str], counts: Sequence[int], firsts: Sequence[int] | None = None
    ):
        self._files = [ReadFile(file) for file in files]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._firsts = firsts or [0] * len(files)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> bytes:
        """A record; raises RuntimeError where its bytes are damaged, and OSError otherwise."""
        number, place = self.place(index)
        file = self._files[number]
        try:
            return file.reader().read([place])[0]
        except IndexError as error:
            raise RuntimeError(f"it holds no record {place}: {error}") from None
        except RuntimeError as error:
            file.close()  # a reader that failed once fails again
            if any(word in str(error) for word in DAMAGED):
                raise
            file.path.stat()  # raises FileNotFoundError
            raise OSError(errno.EIO, str(error), str(file.path)) from None

    def place(self, index: int) -> tuple[int, int]:
        """The number of the file that holds a record, and the record's number in it."""
        index = range(len(self))[index]
        file = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[file - 1]) if file else 0
        return file, index - before + self._firsts[file]


class ReadFile:
    """A file that is opened when it is read, and closed when others have been read since."""

    def __init__(self, file: str):
        self.path = epath.Path(file)
        self._reader: Any = None
        self._lock = threading.Lock()

    def __getstate__(self) -> str:
        return str(self.path)

    def __setstate__(self, state: str) -> None:
        self.__init__(state)

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
