"""Folders of safetensors written tensor by tensor, in any order: the inverse of `tensors`."""

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from onediff_jax.errors import InputError
from onediff_jax.release.tensors import SAFETENSORS_DTYPES, SUFFIX, StoredTensor

ALIGNMENT = 8  # of the first tensor's byte, as the library aligns it
SAFETENSORS_NAMES = {dtype: kind for kind, dtype in SAFETENSORS_DTYPES.items()}
WRITE_BYTES = 1 << 24  # bytes


class TensorFolder:
    """Files of a folder that are as long as they will be, and are filled by `write`.

    Called as diffusers calls them: one file or, where it would be longer than `shard_bytes`, shards
    and their index.  For a `with` statement, whose end makes sure that every tensor was written.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: np.dtype,
        stem: str,
        shard_bytes: int,
    ):
        sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
        shards = shards_of(sizes, shard_bytes)
        names = [
            stem + (f"-{i + 1:05}-of-{len(shards):05}" if shards[1:] else "") + SUFFIX
            for i in range(len(shards))
        ]
        self._waiting: dict[str, StoredTensor] = {}
        for file, shard in zip(names, shards, strict=True):
            part = {name: shapes[name] for name in shard}
            self._waiting |= created(folder / file, part, dtype)
        if shards[1:]:
            places = {name: tensor.file.name for name, tensor in self._waiting.items()}
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
            (folder / f"{stem}{SUFFIX}.index.json").write_text(json.dumps(index, indent=2) + "\n")

    def write(self, name: str, array: np.ndarray) -> None:
        """Puts a tensor in its place, once."""
        tensor = self._waiting.pop(name)
        if array.shape != tensor.shape:
            raise InputError(f"{name} is {array.shape}, not {tensor.shape}.")
        with np.errstate(over="ignore"):
            data = np.ascontiguousarray(array, tensor.dtype).reshape(-1)
        # Of the types, float16 alone is narrow enough to lose numbers to infinity.
        if tensor.dtype == np.float16 and not np.isfinite(data).all():
            raise InputError(f"{name} holds numbers that float16 cannot; use --dtype bfloat16.")
        with tensor.file.open("r+b") as file:
            file.seek(tensor.offset)
            file.write(data.view(np.uint8).data)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None and self._waiting:
            raise InputError(f"These tensors were never written: {sorted(self._waiting)}.")


def shards_of(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names in parts of at most so many bytes together, in their order."""
    parts, filled = [[]], 0
    for name, size in sizes.items():
        if parts[-1] and filled + size > most:
            parts.append([])
            filled = 0
        parts[-1].append(name)
        filled += size
    return parts


def created(
    file: pathlib.Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype
) -> dict[str, StoredTensor]:
    """The places of tensors in a new file that holds its header, and room for them."""
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entry = {
            "dtype": SAFETENSORS_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
        header[name] = entry
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        first = opened.tell()
        opened.truncate(first + end)
    return {
        name: StoredTensor(file, name, first + header[name]["data_offsets"][0], shape, dtype)
        for name, shape in shapes.items()
    }


def digests_in(folder: pathlib.Path) -> dict[str, str]:
    """The SHA-256 of every file of a folder, linked ones included, by relative name."""
    found = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            file, digest = pathlib.Path(parent) / name, hashlib.sha256()
            with file.open("rb") as opened:
                while block := opened.read(WRITE_BYTES):
                    digest.update(block)
            found[str(file.relative_to(folder))] = digest.hexdigest()
    return dict(sorted(found.items()))
