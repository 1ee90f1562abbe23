"""Copies files from object storage to this machine's disk, for readers that need local files.

Released networks and their tokenizers need this: folders of few files, some of several gigabytes.
Each is copied once to $XDG_CACHE_HOME/onediff_jax/copies (~/.cache if that is not set).  One
process copies while the machine's other processes wait for its lock.  A file gets its name when it
is complete and its checksum is right.  A killed process leaves a `.partial` file, which the next
one continues.
"""

import base64
import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import fsspec

from onediff_jax.errors import InputError
from onediff_jax.paths import access_advice, error_line, opened_path, remote

NOTE = ".copied.json"  # in the folder of a copy: what is known of its files
LEFT_OUT = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")  # never read, and large
READ_BYTES = 1 << 24  # bytes of a read
READS = 8  # at once
REPORT_SECONDS = 10.0  # seconds between two lines about progress
SILENT_BYTES = 1 << 20  # bytes; smaller copies are made without a message


class StoredFile(NamedTuple):
    """A file in object storage, as its listing describes it."""

    path: str
    size: int
    checksum: str  # md5:... or crc32c:..., base64; empty where the storage keeps none
    version: str  # what else changes with its content

    @property
    def name(self) -> str:
        """Its name without the folder."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def identity(self) -> list[Any]:
        """What distinguishes its content from another file of its name, as JSON."""
        return [self.size, self.checksum or self.version]


def copies_folder() -> pathlib.Path:
    """Where copies are."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(cache).expanduser() / "onediff_jax" / "copies"


def local_path(path: pathlib.PurePath | str) -> pathlib.Path:
    """Where a path is on this machine's disk: itself, or its copy, which need not be there yet."""
    if not remote(path):
        return pathlib.Path(path).expanduser()
    return copies_folder() / str(path).replace("://", "/")


def local_copy(path: pathlib.PurePath | str) -> pathlib.Path:
    """A file, or a folder with its files but not its subfolders, on this machine's disk.

    `path` itself where it is local; else its copy, which is made or brought up to date.  Raises
    InputError, naming `path`, where it cannot be read or is damaged on its way.
    """
    target = local_path(path)
    if not remote(path):
        return target
    opened_path(path)  # refuses what nothing here reads
    storage, inner = fsspec.core.url_to_fs(str(path))
    try:
        files = stored_files(storage, inner)
    except Exception as error:  # gcsfs, its transport and its credentials raise many kinds
        raise InputError(
            f"{path} cannot be read: {error_line(error)}.{access_advice(path)}"
        ) from error
    if not files:
        raise InputError(f"{path} is neither a file nor a folder with files.{access_advice(path)}")
    single = len(files) == 1 and files[0].path.strip("/") == inner.strip("/")
    folder = target.parent if single else target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder):
            bring(storage, files, folder, f"{path}", prune=not single)
    except OSError as error:
        raise InputError(
            f"{path} cannot be copied to {folder}: {error_line(error)}; set XDG_CACHE_HOME to a "
            "folder with room."
        ) from error
    return target


def stored_files(storage: fsspec.AbstractFileSystem, path: str) -> list[StoredFile]:
    """The files of a folder in object storage, or the one file that `path` names."""
    storage.invalidate_cache()
    try:
        entries = storage.ls(path, detail=True)
    except FileNotFoundError:
        return []
    return [
        StoredFile(entry["name"], int(entry["size"]), checksum_in(entry), version_in(entry))
        for entry in entries
        if entry["type"] == "file"
        and not entry["name"].endswith(("/", *LEFT_OUT))
        and not entry["name"].rsplit("/", 1)[-1].startswith(".")
    ]


def checksum_in(entry: Mapping[str, Any]) -> str:
    """The checksum that a listing has of a file; Google's has one of every object."""
    if entry.get("md5Hash"):
        return f"md5:{entry['md5Hash']}"
    return f"crc32c:{entry['crc32c']}" if entry.get("crc32c") else ""  # composed of parts


def version_in(entry: Mapping[str, Any]) -> str:
    """What changes with a file's content where the storage keeps no checksum."""
    return next((str(entry[key]) for key in ("generation", "etag", "mtime") if key in entry), "")


def checksum_of(file: pathlib.Path, like: str) -> str:
    """The checksum of a file, of the kind of `like`."""
    kind = like.split(":")[0]
    if not kind:
        return ""
    if kind == "md5":
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "md5").digest()
    else:
        import google_crc32c  # comes with gcsfs

        with file.open("rb") as opened:
            found = google_crc32c.Checksum()
            while part := opened.read(READ_BYTES):
                found.update(part)
        digest = found.digest()
    return f"{kind}:{base64.b64encode(digest).decode()}"


@contextlib.contextmanager
def lock(folder: pathlib.Path) -> Iterator[None]:
    """Lets one process of the machine at a time work on a copy; a killed one holds no lock."""
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process, which copies to {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def bring(
    storage: fsspec.AbstractFileSystem,
    files: list[StoredFile],
    folder: pathlib.Path,
    path: str,
    prune: bool,
) -> None:
    """Copies files that are missing or have changed; removes those gone from the source."""
    note = folder / NOTE
    known = json.loads(note.read_text()) if note.is_file() else {}
    lacking = [file for file in files if not is_copied(file, folder, known)]
    names = {file.name for file in files}
    for other in folder.iterdir() if prune else ():
        if other.is_file() and other.name not in names and not other.name.startswith("."):
            other.unlink()
            known.pop(other.name, None)
    if not lacking:
        return
    total = sum(file.size for file in lacking)
    refuse_full(folder, path, total)
    if total >= SILENT_BYTES:
        say(f"fetching {path}: {len(lacking)} files, {total / 1e9:.2f} GB, to {folder}")
    progress = Progress(path, total)
    for file in lacking:
        fetch(storage, file, folder, progress)
        state = (folder / file.name).stat()
        known[file.name] = {"is": file.identity, "at": [state.st_size, state.st_mtime_ns]}
        unfinished = note.with_suffix(".partial")
        unfinished.write_text(json.dumps(known, indent=1))
        unfinished.replace(note)
    if total >= SILENT_BYTES:
        say(f"fetched {path} in {progress.seconds:.0f} s")


def is_copied(file: StoredFile, folder: pathlib.Path, known: Mapping[str, Any]) -> bool:
    """Whether a file is there whole, of this content, and untouched since it was checked."""
    copy, said = folder / file.name, known.get(file.name)
    if not said or said["is"] != file.identity or not copy.is_file():
        return False
    state = copy.stat()
    return said["at"] == [state.st_size, state.st_mtime_ns]


def refuse_full(folder: pathlib.Path, path: str, total: int) -> None:
    """Raises InputError where a copy would not fit."""
    there = sum(file.stat().st_size for file in folder.glob(".*.partial"))
    free = shutil.disk_usage(folder).free
    if free < total - there:
        raise InputError(
            f"{path} takes {total / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free in {folder}; "
            "make room, or set XDG_CACHE_HOME to a folder with more."
        )


class Progress:
    """Reports the progress of a copy now and then."""

    def __init__(self, path: str, total: int):
        self._path, self._total, self._done, self._kept = path, total, 0, 0
        self._began = self._said = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def add(self, count: int, kept: bool = False) -> None:
        """Counts bytes; those that were `kept` from before a kill took no time."""
        self._done += count
        self._kept += count * kept
        if time.monotonic() > self._said + REPORT_SECONDS:
            self._said = time.monotonic()
            rate = (self._done - self._kept) / self.seconds / 1e6
            share = self._done / max(self._total, 1)
            say(f"fetching {self._path}: {share:.0%}, {rate:.0f} MB/s")


def fetch(
    storage: fsspec.AbstractFileSystem, file: StoredFile, folder: pathlib.Path, progress: Progress
) -> None:
    """Copies one file; it appears under its name once its size and checksum are right."""
    key = hashlib.sha256(json.dumps(file.identity).encode()).hexdigest()[:16]
    unfinished = folder / f".{file.name}.{key}.partial"  # its own, so that none goes on in another
    for old in folder.glob(f".{file.name}.*.partial"):
        if old != unfinished:
            old.unlink()
    for last in (False, True):
        with unfinished.open("ab") as opened:
            progress.add(opened.tell(), kept=True)
            for part in parts(storage, file, opened.tell()):
                opened.write(part)
                progress.add(len(part))
        size, found = unfinished.stat().st_size, checksum_of(unfinished, file.checksum)
        if (size, found) == (file.size, file.checksum):
            unfinished.replace(folder / file.name)
            return
        unfinished.unlink()  # a copy that went on after a kill may be damaged: once more, from 0
        if last:
            raise InputError(
                f"{file.path} arrives with {size:,} bytes and checksum {found or 'none'}, and the "
                f"storage says {file.size:,} and {file.checksum or 'none'}; upload it again."
            )


def parts(storage: fsspec.AbstractFileSystem, file: StoredFile, start: int) -> Iterator[bytes]:
    """The bytes of a file from `start` on, in order, several reads under way at once."""
    begins = list(range(start, file.size, READ_BYTES))
    with concurrent.futures.ThreadPoolExecutor(READS) as pool:
        try:
            waiting: list[concurrent.futures.Future] = []
            while begins or waiting:
                while begins and len(waiting) < READS:
                    begin = begins.pop(0)
                    end = min(begin + READ_BYTES, file.size)
                    waiting.append(pool.submit(storage.cat_file, file.path, begin, end))
                try:
                    yield waiting.pop(0).result()
                except Exception as error:  # as of a listing
                    raise InputError(
                        f"{file.path} cannot be read on from byte {start:,}: "
                        f"{error_line(error)}; the same command goes on from there."
                    ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def say(line: str) -> None:
    """Prints a line to standard error; of several processes of a run, only the first does."""
    from onediff_jax import processes  # which imports JAX, and loader workers must not

    if not processes.is_joined() or processes.is_first():
        print(f"onediff_jax: {line}", file=sys.stderr, flush=True)
