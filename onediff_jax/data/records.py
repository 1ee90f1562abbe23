"""Records by number: what every source is, and fields that are read when they are asked for."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from etils import epath
from jaxtyping import Int

from onediff_jax.data.example import RGB, Caption, Record
from onediff_jax.data.images import decode_image
from onediff_jax.data.tasks.table import canonical
from onediff_jax.data.validate import refuse_wrong
from onediff_jax.errors import InputError
from onediff_jax.paths import access_advice, folder_is_there, opened_path, remote
from onediff_jax.settings import Section, setting

SPLITS = ("train", "validation")
READY = "pictures."  # begins the names of fields that are views made elsewhere
WAITS = (0.5, 2.0, 8.0)  # seconds before reading is tried again

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceSettings(Section):
    """Settings common to data sources of every kind."""

    weight: float = setting(
        0.0, "relative to other sources of a task; 0: the number of its records", least=0
    )
    repeats: int = setting(1, "multiplies the weight", least=1)
    tasks: tuple[str, ...] = setting(
        (), "that it may serve; empty: all whose fields its records have"
    )

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "tasks", tuple(map(canonical, self.tasks)))

    def open(self, split: str) -> "Source":
        """The records of a split."""
        source = self.records(split)
        source.settings = self
        return source

    def records(self, split: str) -> "Source":
        """The records of a split; every kind has its own."""
        raise NotImplementedError


class Source(Sequence):
    """Records by number.

    Loader workers receive it pickled, so it holds no open file.
    """

    fields: frozenset[str]  # that every record has
    least: Mapping[str, int] = {}  # images that every record has, by fields that hold several
    settings = SourceSettings()  # with which it was opened

    @property
    def weight(self) -> float:
        """How often its records come, relative to those of other sources that serve a task."""
        return (self.settings.weight or float(len(self))) * self.settings.repeats

    def serves(self, task: str) -> bool:
        """Whether its settings let it serve a task."""
        return not self.settings.tasks or task in self.settings.tasks

    def read(self, index: int, fields: Iterable[str]) -> Record:
        """Some fields of a record; raises BadRecord where its content cannot be used.

        Fields that hold several images may read them only when they are asked for.  Input/output
        errors pass through as OSError.
        """
        record = self[index]
        ready = [name.removeprefix(READY) for name in fields if name.startswith(READY)]
        taken = {name: record[name] for name in fields if not name.startswith(READY)}
        taken |= {"pictures": {n: record["pictures"][n] for n in ready}} if ready else {}
        refuse_wrong(taken, self.where(index))
        return taken

    def caption(self, index: int) -> Caption:
        """The caption or captions of a record, without its images where that is cheaper."""
        return self[index].get("caption", "")

    def where(self, index: int) -> str:
        """The place of a record for messages: a file and a line, or a number."""
        return f"record {index}"


def retry(read: Callable[[], Value], sleep: Callable[[float], Any] = time.sleep) -> Value:
    """What `read` returns, tried again after input/output errors.

    Raises InputError, naming the file, where the last try fails too: the run must stop, since to
    go on without a record would make its rows depend on luck.
    """
    for wait in WAITS:
        try:
            return read()
        except OSError:
            sleep(wait)
    try:
        return read()
    except OSError as error:
        raise InputError(
            f"{error.filename or 'A source'} cannot be read: {error.strerror or error} "
            f"({len(WAITS) + 1} tries in {sum(WAITS):g} s); restore it, then resume the run."
        ) from error


class StoredImage(NamedTuple):
    """An image as a source keeps it: its name for messages, and what reads its encoded bytes."""

    name: str
    encoded: Callable[[], bytes]

    def image(self) -> RGB:
        """The image, decoded; raises BadRecord where it is none."""
        return decode_image(self.encoded(), self.name)


class StoredImages(Sequence):
    """Images that are read when they are asked for."""

    def __init__(self, stored: Sequence[StoredImage]):
        self.stored = stored

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: int) -> RGB:
        return self.stored[index].image()


class NamedImages(Mapping):
    """Images by name that are read when they are asked for."""

    def __init__(self, stored: Mapping[str, StoredImage]):
        self.stored = stored

    def __len__(self) -> int:
        return len(self.stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __getitem__(self, name: str) -> RGB:
        return self.stored[name].image()


class StoredRecord(Mapping):
    """A record whose fields are read when they are asked for, once.

    A stored image is decoded, a function called; everything else is the field itself.
    """

    def __init__(self, stored: Mapping[str, Any]):
        self.stored = stored
        self._read: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __contains__(self, name: object) -> bool:
        return name in self.stored

    def __getitem__(self, name: str) -> Any:
        if name not in self._read:
            value = self.stored[name]
            if isinstance(value, StoredImage):
                value = value.image()
            self._read[name] = value() if callable(value) else value
        return self._read[name]


def folder_at(path: str, kind: str) -> pathlib.Path:
    """The folder that a source of some kind is in.

    Raises InputError where there is none, or it is in object storage, which only shards, caches and
    data sets of TFDS are read from: a file for every image is too many for it.
    """
    refuse_remote(path, kind)
    folder = pathlib.Path(path).expanduser()
    if not path or not folder.is_dir():
        raise no_folder(path, kind)
    return folder


def refuse_remote(path: str, kind: str) -> None:
    """Raises where a path is in object storage."""
    if remote(path):
        raise InputError(
            f"{path!r} is object storage, which data sources of kind {kind!r} cannot be read from; "
            "make shards of it by `python -m onediff_jax make_shards`, or mount it as a folder."
        )


def few_files_at(path: str, kind: str) -> epath.Path:
    """The folder that a source of few large files is in, which may be in object storage."""
    if not path or not folder_is_there(path):
        raise no_folder(path, kind)
    return opened_path(path)


def no_folder(path: str, kind: str) -> InputError:
    """The error of a source of some kind whose folder is not there."""
    return InputError(
        f"There is no folder {path!r}; set the path of the data source of kind {kind!r} to one."
        f"{access_advice(path)}"
    )


def numbers_of_split(
    split: str, count: int, validation: int, counted: str
) -> Int[np.ndarray, " n"]:
    """The numbers, ascending, that a split has of `count` records, scenes or subjects.

    Validation holds out so many, spread evenly.  Raises InputError, saying what is `counted`, where
    nothing would be left to train on or the split does not exist.
    """
    if split not in SPLITS:
        raise InputError(f"There is no split {split!r}; it can be {' or '.join(SPLITS)}.")
    if not 0 <= validation < count:
        raise InputError(
            f"{counted}: there are {count}, and the source's validation holds out {validation}; "
            f"set it below {count}."
        )
    held_out = np.zeros(count, bool)
    if validation:
        every = count // validation
        held_out[: every * validation : every] = True
    return np.flatnonzero(held_out if split == "validation" else ~held_out)
