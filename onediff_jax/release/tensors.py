"""The tensors of a folder of safetensors, read one by one when they are asked for.

A file is 8 bytes that say how long its header is, a JSON header that says type, shape and place of
every tensor, and the tensors' bytes without holes (https://github.com/huggingface/safetensors).
Nothing is ever unpickled.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from onediff_jax.errors import InputError

STEMS = ("diffusion_pytorch_model", "model")  # of files by diffusers, and by transformers
SUFFIX = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SAFETENSORS_DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
LONGEST_HEADER = 100_000_000  # bytes, as the library allows
CONVERT = (
    "import sys, torch, safetensors.torch as s; "
    "s.save_file({n: t.clone() for n, t in torch.load(sys.argv[1], weights_only=True).items()}, "
    "sys.argv[2])"
)


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; `np.asarray` of it reads it, each time anew."""

    file: pathlib.Path
    name: str
    offset: int  # of its first byte
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(f"{self.name} is in a file; reading it makes a copy.")
        data = np.fromfile(self.file, np.uint8, self.nbytes, offset=self.offset)
        if data.size != self.nbytes:
            raise InputError(
                f"{self.file}: {self.name}: expected {self.nbytes} bytes, found {data.size}; "
                "the file was changed while it was read."
            )
        array = data.view(self.dtype).reshape(self.shape)
        return array if dtype is None else array.astype(dtype, copy=False)


def read_tensors(folder: pathlib.Path) -> dict[str, StoredTensor]:
    """The tensors of a network's folder by name: one file, or the shards that an index names.

    Files are called as diffusers or transformers call them; one of a variant, such as
    model.fp16.safetensors, is read where it is the only one.  Raises InputError, one line that
    names file, key, what was expected and what was found.
    """
    weights = weights_file(folder)
    if weights.suffix != ".json":
        return tensors_in(weights)
    places = weight_map(weights)
    found: dict[str, StoredTensor] = {}
    for shard in sorted(set(places.values())):
        if not (folder / shard).is_file():
            names = [name for name, place in places.items() if place == shard]
            raise InputError(
                f"{folder / shard} is missing; {weights.name} expects {len(names)} tensors in it, "
                f"such as {names[0]}."
            )
        there = tensors_in(folder / shard)
        for name in sorted({n for n, place in places.items() if place == shard} ^ set(there)):
            expected, present = places.get(name, "no file"), shard if name in there else "nothing"
            raise InputError(
                f"{folder / shard}: {name}: {weights.name} expected it in {expected}, found "
                f"{present} here."
            )
        found |= there
    return found


def weights_file(folder: pathlib.Path) -> pathlib.Path:
    """The safetensors file of a network's folder, or the index of its shards."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; expected one with config.json and safetensors.")
    for stem in STEMS:
        for name in (f"{stem}{SUFFIX}", f"{stem}{SUFFIX}.index.json"):
            if (folder / name).is_file():
                return folder / name
    singles = [f for stem in STEMS for f in sorted(folder.glob(f"{stem}.*{SUFFIX}"))]
    variants = [f for f in singles if "-of-" not in f.name]
    variants += [f for stem in STEMS for f in folder.glob(f"{stem}{SUFFIX}.index.*.json")]
    if len(variants) == 1:
        return variants[0]
    if variants:
        raise InputError(
            f"{folder} holds {', '.join(f.name for f in variants)}; keep one, under the name "
            f"{variants[0].name.split('.')[0]}{SUFFIX}."
        )
    if pickles := [f for f in sorted(folder.iterdir()) if f.suffix in PICKLES]:
        raise InputError(
            f"{pickles[0]} is a pickle, which can run any code and is never read; expected "
            f"safetensors; convert it: python -c '{CONVERT}' {pickles[0].name} {STEMS[0]}{SUFFIX}"
        )
    raise InputError(
        f"{folder} holds no weights; expected {' or '.join(stem + SUFFIX for stem in STEMS)}, or "
        "an index of shards."
    )


def weight_map(index: pathlib.Path) -> dict[str, str]:
    """The file of every tensor, by an index."""
    places = json_in(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index}: weight_map: expected files of tensors, found {places!r:.80}.")
    for name, place in places.items():
        if not isinstance(place, str) or pathlib.PurePath(place).name != place:
            raise InputError(
                f"{index}: weight_map: {name}: expected a file of this folder, found {place!r}."
            )
    return places


def json_in(file: pathlib.Path) -> dict[str, Any]:
    """The object that a JSON file holds."""
    if not file.is_file():
        raise InputError(f"{file} is missing.")
    return json_object(file.read_bytes(), str(file))


def json_object(text: bytes, where: str) -> dict[str, Any]:
    """The object that a JSON text holds."""
    try:
        values = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected JSON, found {text[:40]!r} ({error}).") from error
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected an object in braces, found {text[:40]!r}.")
    return values


def tensors_in(file: pathlib.Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file by name.

    Raises InputError where the file is cut off, is another kind of file, or contradicts itself.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, LONGEST_HEADER):
            raise InputError(
                f"{file}: header: expected its {length} bytes in a safetensors file, found a file "
                f"of {size} bytes; it is cut off or of another kind."
            )
        header = json_object(opened.read(length), f"{file}: header")
    header.pop("__metadata__", None)
    tensors = {name: stored_tensor(file, name, entry, 8 + length) for name, entry in header.items()}
    end = 8 + length
    for tensor in sorted(tensors.values(), key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset != end:
            raise InputError(
                f"{file}: {tensor.name}: data_offsets: expected a start at {end - 8 - length}, "
                f"found {tensor.offset - 8 - length}."
            )
        end = tensor.offset + tensor.nbytes
    if end != size:
        raise InputError(f"{file}: expected {end} bytes by its header, found {size}.")
    return tensors


def stored_tensor(file: pathlib.Path, name: str, entry: Any, start: int) -> StoredTensor:
    """The tensor that an entry of a header describes; bytes are counted from `start`."""
    keys = ("dtype", "shape", "data_offsets")
    if not isinstance(entry, Mapping) or set(entry) != set(keys):
        raise InputError(f"{file}: {name}: expected {', '.join(keys)}, found {entry!r:.80}.")
    kind, shape, offsets = (entry[key] for key in keys)
    if kind not in SAFETENSORS_DTYPES:
        raise InputError(
            f"{file}: {name}: expected {', '.join(SAFETENSORS_DTYPES)}, found {kind!r:.80}."
        )
    for key, values in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(values, list) or not all(type(n) is int and n >= 0 for n in values):
            raise InputError(f"{file}: {name}: {key}: expected sizes, found {values!r:.80}.")
    expected = math.prod(shape) * SAFETENSORS_DTYPES[kind].itemsize
    if len(offsets) != 2 or offsets[1] - offsets[0] != expected:
        raise InputError(
            f"{file}: {name}: data_offsets: expected {expected} bytes for {kind} {shape}, found "
            f"{offsets!r:.80}."
        )
    return StoredTensor(file, name, start + offsets[0], tuple(shape), SAFETENSORS_DTYPES[kind])
