"""Caches: the examples of a source, made and encoded once, in files that are read at random access.

    DIR/SOURCE/plan.json        what is in it: encoders, sizes of images, ways of conditions, seed
               assets.npz       what a run needs of the data before it begins: codec and vocabulary
               PART-NNNNN.array_record
               manifest.json    the plan, files with counts and checksums; written last
               validation/      the same of held-out records, where the source has any

A *part* holds the examples of one task with so many views of so many tokens.  An example is one
msgpack map: its images as means and log-variances of normalised latents, bfloat16; its cameras;
its prompt as text, and as token ids or as states, bfloat16, of the tokens that count.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgpack
import numpy as np
from etils import epath

from onediff_jax.data.example import EncodedImage, EncodedPrompt, Example, Record, SourcedExample
from onediff_jax.data.records import Source, SourceSettings, few_files_at
from onediff_jax.data.sources.arrayrecord import (
    BFLOAT16,
    RecordFiles,
    array_of,
    array_parts,
    manifest_in,
    refuse_changed,
    sizes_in,
)
from onediff_jax.errors import InputError
from onediff_jax.ops.cameras import Camera
from onediff_jax.paths import Location
from onediff_jax.settings import setting

VALIDATION = "validation"  # the folder of held-out examples, beside those for training
MANIFEST, PLAN, ASSETS = "manifest.json", "plan.json", "assets.npz"
_REMEDY = "encode the data set again: `python -m onediff_jax encode`"
# What is true of caches whose plans do not say it, since they are older than the settings.
UNSAID = {"pictures.enlarge": 2.0, "pictures.filter": "lanczos"}


class ExampleShape(NamedTuple):
    """A task, and how many views of how many tokens its examples have."""

    task: str
    views: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.task}-{self.views}x{self.tokens}"

    @classmethod
    def parse(cls, name: str) -> "ExampleShape":
        """The inverse of `str`."""
        task, size = name.rsplit("-", 1)
        return cls(task, *map(int, size.split("x")))


# --- one example ----------------------------------------------------------------------------------


def example_bytes(sourced: SourcedExample, record: int) -> bytes:
    """An encoded example as bytes; `record` is the number of the record that it was made of."""
    example = sourced.example
    assert isinstance(example.prompt, EncodedPrompt), "a cache holds encoded examples"
    values = {
        "task": example.task,
        "record": record,
        "faults": sourced.bad_records,
        "text": example.prompt.text,
        "tokens": array_parts(example.prompt.tokens),
        "views": [
            {"camera": [array_parts(part) for part in view]}
            if isinstance(view, Camera)
            else {
                "mean": array_parts(view.mean.astype(BFLOAT16)),
                "log_variance": view.std is not None
                and array_parts(log_variance_of(view.std).astype(BFLOAT16)),
            }
            for view in example.views
        ],
    }
    return msgpack.packb(values)


def encoded_example(data: bytes, source: int) -> SourcedExample:
    """The inverse of `example_bytes`, for the source of that number."""
    values = msgpack.unpackb(data)
    views = tuple(
        Camera(*map(array_of, view["camera"]))
        if "camera" in view
        else EncodedImage(
            array_of(view["mean"]).astype(np.float32),
            std_of(array_of(view["log_variance"])) if view["log_variance"] else None,
        )
        for view in values["views"]
    )
    prompt = EncodedPrompt(values["text"], array_of(values["tokens"]))
    return SourcedExample(Example(values["task"], views, prompt), source, values["faults"])


def log_variance_of(std: np.ndarray) -> np.ndarray:
    """The logarithm of a variance, no less than diffusers' least."""
    return 2 * np.log(np.maximum(std, np.exp(-15, dtype=np.float32)))


def std_of(log_variance: np.ndarray) -> np.ndarray:
    """The inverse of `log_variance_of`, float32."""
    return np.exp(0.5 * log_variance.astype(np.float32))


# --- a folder -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cache(SourceSettings):
    """Encoded examples that `encode` wrote of one source."""

    path: Location = setting("", "of the source's folder, with manifest.json")

    def records(self, split: str) -> Source:
        """The examples of a split; validation has none where none was encoded."""
        folder = few_files_at(self.path, "cache")
        if split == "train":
            return CachedSource(folder)
        held_out = folder / VALIDATION
        if (held_out / MANIFEST).is_file():
            return CachedSource(held_out)
        return CachedSource(folder, empty=True)


class CachedSource(Source):
    """Encoded examples instead of records; `examples` has those of a part."""

    def __init__(self, folder: epath.Path, empty: bool = False):
        self.folder, self.manifest = folder, cache_manifest(folder)
        self.fields, self.least = frozenset(self.manifest["fields"]), self.manifest["least"]
        self._length = 0 if empty else self.manifest["records"]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        raise InputError(f"{self.folder} is a cache, which holds examples and no records.")

    @property
    def empty(self) -> EncodedPrompt:
        """The empty prompt."""
        kind, shape, data = self.manifest["empty"]
        return EncodedPrompt("", array_of([kind, shape, bytes.fromhex(data)]))

    @property
    def bare(self) -> dict[str, EncodedPrompt]:
        """States of prompts without a caption, of all parts; none where prompts are ids."""
        found = self.manifest.get("bare", {}).items()
        return {
            text: EncodedPrompt(text, array_of([kind, shape, bytes.fromhex(data)]))
            for text, (kind, shape, data) in found
        }

    @property
    def holds_states(self) -> bool:
        """Whether prompts are states of the text encoder, and not ids."""
        return self.manifest["plan"]["text"]["content"] == "states"

    @property
    def holds_deviations(self) -> bool:
        """Whether images are distributions, and not just means."""
        return bool(self.manifest["plan"]["codec"]["deviations"])

    def assets(self) -> dict[str, np.ndarray]:
        """What the run needs of the data before it begins, as arrays."""
        with (self.folder / ASSETS).open("rb") as file, np.load(file) as held:
            return dict(held)

    @functools.cached_property
    def _sizes(self) -> dict[str, int]:
        """Bytes of the files in the folder, by name."""
        return sizes_in(self.folder)

    def examples(self, part: ExampleShape) -> RecordFiles:
        """The examples of a part, as bytes; raises InputError, naming the parts, without it."""
        parts = self.manifest["parts"]
        if str(part) not in parts:
            raise InputError(
                f"{self.folder} holds no examples of task {part.task!r} with {part.views} views of "
                f"{part.tokens} tokens; it holds {', '.join(parts)}.  Encode the data set with "
                "this config's slots and tasks: `python -m onediff_jax encode`."
            )
        refuse_changed(self.folder, parts[str(part)], self._sizes, MANIFEST)
        return RecordFiles.listed(self.folder, parts[str(part)], _REMEDY)

    def refuse_other(self, plan: Mapping[str, Any]) -> None:
        """Raises, naming the first entry that differs, where a run would encode otherwise."""
        before, now = UNSAID | flat(self.manifest["plan"]), flat(plan)
        before.pop("conditions.hed", None)  # of older caches: where a file was
        for name in sorted(before | now):
            if before.get(name) != now.get(name):
                raise InputError(
                    f"{self.folder / MANIFEST}: {name} is {before.get(name)!r}, and "
                    f"{now.get(name)!r} in this run; set it to that, or encode the data set again: "
                    "`python -m onediff_jax encode`."
                )


def cache_manifest(folder: epath.Path) -> dict[str, Any]:
    """What manifest.json says; raises InputError where the folder is not a whole cache."""
    remedy = f"{_REMEDY}, which goes on where it stopped"
    return manifest_in(folder / MANIFEST, ("fields", "least", "records", "parts"), remedy)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Entries by dotted name."""
    found = {}
    for name, value in values.items():
        inner = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found
