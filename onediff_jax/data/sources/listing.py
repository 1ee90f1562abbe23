"""The listing of a folder: `metadata.jsonl` or `metadata.csv`, indexed once and read by number.

Hugging Face's imagefolder convention: an entry a line, with its `file_name` and other columns.
"""

import array
import csv
import io
import json
import os
import pathlib
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from onediff_jax.errors import InputError

_NAMES = ("metadata.jsonl", "metadata.csv")
EXAMPLE = '{"file_name": "a.png", "text": "a caption"}'


class Entry(NamedTuple):
    """An entry: where it is in the file, and what it says."""

    line: int  # counted from 1
    start: int  # bytes
    length: int
    columns: dict[str, Any]


class Listing(Sequence):
    """Entries of a listing by number, read from its file when they are asked for.

    It keeps 16 bytes an entry, so that a million of them open in seconds and travel to workers.
    """

    def __init__(self, file: pathlib.Path):
        self.file = file
        self._header = csv_header(file) if file.suffix == ".csv" else None
        self._places = (array.array("I"), array.array("Q"), array.array("I"))

    def read(self) -> Iterator[dict[str, Any]]:
        """Indexes the file; yields every entry on the way.  Raises InputError with a line."""
        lines, starts, lengths = self._places
        entries = json_entries(self.file) if self._header is None else csv_entries(self.file)
        for line, start, length, columns in entries:
            if not isinstance(columns, dict) or not isinstance(columns.get("file_name"), str):
                raise InputError(
                    f"{self.file}, line {line}: expected {EXAMPLE}, found "
                    f"{json.dumps(columns)[:80]}."
                )
            lines.append(line)
            starts.append(start)
            lengths.append(length)
            yield columns
        if not lines:
            raise InputError(f"{self.file} names no files; write a line {EXAMPLE} for each.")

    def __len__(self) -> int:
        return len(self._places[0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        _, starts, lengths = self._places
        with self.file.open("rb") as file:
            file.seek(starts[index])
            data = file.read(lengths[index])
        try:
            if self._header is None:
                return json.loads(data)
            return dict(zip(self._header, csv_row(data.decode()), strict=True))
        except ValueError:
            raise InputError(f"{self.where(index)} changed while it was in use; restart.") from None

    def where(self, index: int) -> str:
        """The file and the line of an entry."""
        return f"{self.file}, line {self._places[0][index]}"


def listing_in(folder: pathlib.Path) -> Listing | None:
    """The listing of a folder, not yet read; None where it has none."""
    files = [folder / name for name in _NAMES if (folder / name).is_file()]
    if len(files) > 1:
        raise InputError(f"{folder} has both {' and '.join(_NAMES)}; keep one of them.")
    return Listing(files[0]) if files else None


def is_caption(value: Any) -> bool:
    """Whether a column holds a text, or a list of some."""
    several = value if isinstance(value, list) and value else [value]
    return all(isinstance(text, str) for text in several)


def json_entries(file: pathlib.Path) -> Iterator[Entry]:
    """Every JSON line; empty ones are skipped."""
    start = 0
    with file.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            if line.strip():
                try:
                    columns = json.loads(line)
                except ValueError:  # of bytes or of JSON
                    raise InputError(
                        f"{file}, line {number}: expected {EXAMPLE}, found "
                        f"{line.decode(errors='replace').strip()[:80]!r}."
                    ) from None
                yield Entry(number, start, len(line), columns)
            start += len(line)


def csv_header(file: pathlib.Path) -> list[str]:
    """The names of a CSV file's columns."""
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as opened:
        return next(csv.reader(opened), [])


def csv_row(text: str) -> list[str]:
    """The cells of one entry, which may span lines."""
    return next(csv.reader(io.StringIO(text, newline="")))


def csv_entries(file: pathlib.Path) -> Iterator[Entry]:
    """Every row of a CSV file after its header."""
    read = [0, 0]  # lines and bytes that the reader has taken

    def counted(lines: Iterator[bytes]) -> Iterator[str]:
        for line in lines:
            read[0] += 1
            read[1] += len(line)
            yield line.decode("utf-8-sig" if read[0] == 1 else "utf-8")

    with file.open("rb") as opened:
        rows = csv.reader(counted(opened), strict=True)
        try:
            header = next(rows, [])
            line, start = read
            for row in rows:
                if row:
                    if len(row) != len(header):
                        raise InputError(
                            f"{file}, line {line + 1}: {len(row)} cells; the first line names "
                            f"{len(header)} columns."
                        )
                    columns = dict(zip(header, row, strict=True))
                    yield Entry(line + 1, start, read[1] - start, columns)
                line, start = read
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{file}, line {read[0]}: not CSV in UTF-8: {error}.") from None


class ListedFiles:
    """Names of files that entries mention, kept as numbers until all are looked for at once."""

    def __init__(self, listing: Listing):
        self._listing, self._folder = listing, listing.file.parent
        self._keys, self._entries = array.array("q"), array.array("I")
        self._folders: set[str] = set()

    def add(self, name: str) -> None:
        """Remembers a name of the entry that was read last."""
        name = normal_path(name)
        self._folders.add(name.rpartition("/")[0])
        self._keys.append(hash(name))
        self._entries.append(len(self._listing) - 1)

    def refuse_missing(self) -> None:
        """Raises InputError with the line of the first name that no file has."""
        present = np.fromiter(map(hash, self._present()), np.int64)
        missing = np.flatnonzero(~np.isin(np.frombuffer(self._keys, np.int64), present))
        if len(missing):
            entry = self._entries[missing[0]]
            key = self._keys[missing[0]]
            values = self._listing[entry].values()
            name = next(v for v in values if isinstance(v, str) and hash(normal_path(v)) == key)
            raise InputError(
                f"{self._listing.where(entry)}: there is no file {name!r} in {self._folder}."
            )

    def _present(self) -> Iterator[str]:
        # Only folders that are mentioned: a walk would read all that lies beside them.
        for inner in self._folders:
            folder = self._folder / inner
            if not inner.startswith(("/", "..")) and folder.is_dir():
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if not entry.is_dir():
                            yield f"{inner}/{entry.name}" if inner else entry.name


def normal_path(name: str) -> str:
    """A path without needless parts."""
    return posixpath.normpath(name) if "./" in name or "//" in name else name
