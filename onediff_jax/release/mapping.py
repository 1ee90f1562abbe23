"""Between the tensors of a released PyTorch network and our parameters, by one table for both ways.

Released matrices are [out, in] and kernels of convolutions [out, in, height, width]; ours are
[in, out] and [height, width, in, out].  Where our layers are stacked, a layer is a tensor there.
The tables of all networks are in `torch_names.py`.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict

from onediff_jax.errors import InputError
from onediff_jax.ops.rope import halves_from_pairs, pairs_from_halves

# Transforms of axes: T a matrix, C the kernel of a convolution.  A third one, R, orders channels:
# the two parts of a rotary pair are adjacent in a released head and half a head apart in ours.
TO_RELEASED = {"T": "... i o -> ... o i", "C": "... h w i o -> ... o i h w"}
FROM_RELEASED = {"T": "... o i -> ... i o", "C": "... o i h w -> ... h w i o"}


class Names(NamedTuple):
    """What a network's parameters are called where it was released, and how they lie there.

    `rules` map a released name to our path and its transforms: T, C, or R for an (out) axis made of
    rotary heads.  {} in a name stands for the same part of the path; one more {} than the path has
    is the number of a layer, stacked on our first axis.
    `aliases` map other names of a tensor, old ones or those of a tied copy, to the rules' name.
    """

    network: str
    rules: Mapping[str, tuple[str, str]]
    aliases: Mapping[str, str] = {}
    head: int = 1  # channels of a rotary head


class TensorPlace(NamedTuple):
    """Where a released tensor is among our parameters."""

    path: str
    layer: int | None  # on the first axis, where layers are stacked
    transforms: str


def released(params: Mapping, names: Names) -> dict[str, np.ndarray]:
    """Our parameters under released names, in released layouts."""
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    tensors = {}
    for name, (path, layer, transforms) in places_of(params, names).items():
        array = flat[path] if layer is None else flat[path][layer]
        if "R" in transforms:
            array = permuted(array, pairs_from_halves(names.head))
        tensors[name] = rearranged(array, transforms, TO_RELEASED)
    return tensors


def released_shapes(shapes: Mapping, names: Names) -> dict[str, tuple[int, ...]]:
    """Released names and shapes of a network whose parameters have `shapes`."""
    flat, found = flatten_dict(shapes, sep="/"), {}
    for name, (path, layer, transforms) in places_of(shapes, names).items():
        shape = flat[path].shape if layer is None else flat[path].shape[1:]
        found[name] = rearranged(
            np.broadcast_to(np.float32(0), shape), transforms, TO_RELEASED
        ).shape
    return found


def from_released(tensors: Mapping[str, Any], names: Names, shapes: Mapping) -> dict:
    """Our parameters, from tensors under released names: the inverse of `released`.

    `shapes` are our parameters' shapes and types (`eval_shape` of their init).  A tensor is read
    (`np.asarray`) when its turn comes, and not kept.  Raises InputError as `sources_of` does.
    """
    expected, sources = released_shapes(shapes, names), sources_of(tensors, names, shapes)
    flat = {
        path: np.empty(leaf.shape, leaf.dtype)
        for path, leaf in flatten_dict(shapes, sep="/").items()
    }
    for name, (path, layer, transforms) in places_of(shapes, names).items():
        array = np.asarray(tensors[sources[name]]).reshape(expected[name])
        array = rearranged(array, transforms, FROM_RELEASED)
        if "R" in transforms:
            array = permuted(array, halves_from_pairs(names.head))
        flat[path][... if layer is None else layer] = array
    return unflatten_dict(flat, sep="/")


def sources_of(tensors: Mapping[str, Any], names: Names, shapes: Mapping) -> dict[str, str]:
    """What is called, among the tensors, by each released name of a network of these shapes.

    Ones at the end of a tensor's shape are ignored, since matrices of old checkpoints are
    convolutions of one pixel.  Raises InputError that lists every missing, unknown, misshapen or
    contradictory tensor.  Tensors are not read, unless there are copies of one.
    """
    sources: dict[str, list[str]] = {}
    for name in tensors:
        sources.setdefault(current_name(name, names.aliases), []).append(name)
    refuse_leftovers(tensors, sources, released_shapes(shapes, names), names.network)
    return {name: copies[0] for name, copies in sources.items()}


def places_of(params: Mapping, names: Names) -> dict[str, TensorPlace]:
    """Released names of all our parameters, and where they are; exactly one rule must match each.

    `params` may be arrays or shapes.
    """
    places, unmatched = {}, []
    for path, leaf in flatten_dict(params, sep="/").items():
        matches = [
            (name, parts, transforms)
            for name, (pattern, transforms) in names.rules.items()
            if (parts := pattern_parts(path, pattern)) is not None
        ]
        if len(matches) != 1:
            unmatched.append(path)
            continue
        ((name, parts, transforms),) = matches
        if name.count("{}") == len(parts):
            places[name.format(*parts)] = TensorPlace(path, None, transforms)
        else:
            layers = range(leaf.shape[0])
            places |= {name.format(*parts, i): TensorPlace(path, i, transforms) for i in layers}
    if unmatched:
        raise InputError(
            f"The names of {names.network} do not have exactly one rule for each of {unmatched}."
        )
    return places


def pattern_parts(name: str, pattern: str) -> tuple[str, ...] | None:
    """What stands for each {} of a pattern in a name; None where it does not match."""
    found = re.fullmatch(re.escape(pattern).replace(r"\{\}", "([^./]+)"), name)
    return found and found.groups()


def current_name(name: str, aliases: Mapping[str, str]) -> str:
    """The name that the rules know for a tensor."""
    for pattern, current in aliases.items():
        if (parts := pattern_parts(name, pattern)) is not None:
            return current.format(*parts)
    return name


def rearranged(array: np.ndarray, transforms: str, orders: Mapping[str, str]) -> np.ndarray:
    """`array` with its axes in another order, where the transforms name one."""
    for letter in set(transforms) & set(orders):
        array = rearrange(array, orders[letter])
    return array


def permuted(array: np.ndarray, order: np.ndarray) -> np.ndarray:
    """`array` with the channels of every head along its last axis in another order."""
    heads = rearrange(array, "... (k h) -> ... k h", h=len(order))
    return rearrange(heads[..., order], "... k h -> ... (k h)")


def refuse_leftovers(
    tensors: Mapping[str, Any],
    sources: Mapping[str, list[str]],
    expected: Mapping[str, tuple[int, ...]],
    network: str,
) -> None:
    """Raises, listing all, where tensors are missing, unknown, misshapen or contradict a copy."""
    faults: dict[str, list[Any]] = {  # names, messages, and lists of names
        "missing": sorted(set(expected) - set(sources)),
        "unknown": sorted(n for name in set(sources) - set(expected) for n in sources[name]),
        "of another shape": [],
        "different copies of one tensor": [],
    }
    for name in sorted(set(expected) & set(sources)):
        wanted, (first, *copies) = expected[name], sources[name]
        for source in sources[name]:
            shape = np.shape(tensors[source])
            if shape != wanted + (1,) * (len(shape) - len(wanted)):
                faults["of another shape"].append(f"{source} is {shape}, not {wanted}")
        if any(not np.array_equal(tensors[first], tensors[copy]) for copy in copies):
            faults["different copies of one tensor"].append(sources[name])
    if any(faults.values()):
        found = ", ".join(f"{fault} {found}" for fault, found in faults.items() if found)
        raise InputError(f"These weights are not those of {network}: {found}.")
