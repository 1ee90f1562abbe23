"""The released PyTorch names of Next-DiT's parameters, and the way between the two layouts.

One table serves both ways.  Released matrices are [out, in], one tensor a layer; ours are [in,
out], stacked over layers.  The two parts of a rotary pair are adjacent in a released head and half
a head apart in ours, so whatever makes rotated queries or keys, or meets them, is permuted within
each head.
"""

from collections.abc import Mapping

import numpy as np
from einops import rearrange

from onediff_jax.errors import InputError
from onediff_jax.models.nextdit import NextDiTConfig
from onediff_jax.ops.rope import halves_from_pairs, pairs_from_halves

# Released name -> (our path, transforms).  {} stands for the layer, stacked on our first axis.
# T: matrix, transposed.  R: the (out) axis is made of heads whose channels are permuted.
RULES = {
    "x_embedder.weight": ("x_embedder/kernel", "T"),
    "x_embedder.bias": ("x_embedder/bias", ""),
    "t_embedder.mlp.0.weight": ("t_embedder_0/kernel", "T"),
    "t_embedder.mlp.0.bias": ("t_embedder_0/bias", ""),
    "t_embedder.mlp.2.weight": ("t_embedder_2/kernel", "T"),
    "t_embedder.mlp.2.bias": ("t_embedder_2/bias", ""),
    "y_embedder.0.weight": ("y_embedder_norm/scale", ""),
    "y_embedder.0.bias": ("y_embedder_norm/bias", ""),
    "y_embedder.1.weight": ("y_embedder/kernel", "T"),
    "y_embedder.1.bias": ("y_embedder/bias", ""),
    "layers.{}.attention.wq.weight": ("layers/attention/wq/kernel", "TR"),
    "layers.{}.attention.wk.weight": ("layers/attention/wk/kernel", "TR"),
    "layers.{}.attention.wv.weight": ("layers/attention/wv/kernel", "T"),
    "layers.{}.attention.wk_y.weight": ("layers/attention/wk_y/kernel", "TR"),
    "layers.{}.attention.wv_y.weight": ("layers/attention/wv_y/kernel", "T"),
    "layers.{}.attention.wo.weight": ("layers/attention/wo/kernel", "T"),
    "layers.{}.attention.gate": ("layers/attention/gate", ""),
    "layers.{}.attention.q_norm.weight": ("layers/attention/q_norm/scale", "R"),
    "layers.{}.attention.q_norm.bias": ("layers/attention/q_norm/bias", "R"),
    "layers.{}.attention.k_norm.weight": ("layers/attention/k_norm/scale", "R"),
    "layers.{}.attention.k_norm.bias": ("layers/attention/k_norm/bias", "R"),
    "layers.{}.attention.ky_norm.weight": ("layers/attention/ky_norm/scale", "R"),
    "layers.{}.attention.ky_norm.bias": ("layers/attention/ky_norm/bias", "R"),
    "layers.{}.feed_forward.w1.weight": ("layers/feed_forward/w1/kernel", "T"),
    "layers.{}.feed_forward.w2.weight": ("layers/feed_forward/w2/kernel", "T"),
    "layers.{}.feed_forward.w3.weight": ("layers/feed_forward/w3/kernel", "T"),
    "layers.{}.attention_norm1.weight": ("layers/attention_norm1/scale", ""),
    "layers.{}.attention_norm2.weight": ("layers/attention_norm2/scale", ""),
    "layers.{}.ffn_norm1.weight": ("layers/ffn_norm1/scale", ""),
    "layers.{}.ffn_norm2.weight": ("layers/ffn_norm2/scale", ""),
    "layers.{}.attention_y_norm.weight": ("layers/attention_y_norm/scale", ""),
    "layers.{}.adaLN_modulation.1.weight": ("layers/adaln/kernel", "T"),
    "layers.{}.adaLN_modulation.1.bias": ("layers/adaln/bias", ""),
    "final_layer.linear.weight": ("final_linear/kernel", "T"),
    "final_layer.linear.bias": ("final_linear/bias", ""),
    "final_layer.adaLN_modulation.1.weight": ("final_adaln/kernel", "T"),
    "final_layer.adaLN_modulation.1.bias": ("final_adaln/bias", ""),
}


def released(params: Mapping, config: NextDiTConfig) -> dict[str, np.ndarray]:
    """Our parameters under released names, in released layouts."""
    flat, tensors = flattened(params), {}
    refuse_leftovers(flat, {path for path, _ in RULES.values()})
    for name, (path, transforms) in RULES.items():
        array = np.asarray(flat[path])
        if "R" in transforms:
            array = permuted(array, pairs_from_halves(config.width // config.heads))
        if "T" in transforms:
            array = array.swapaxes(-1, -2)
        if "{}" in name:
            tensors |= {name.format(i): layer for i, layer in enumerate(array)}
        else:
            tensors[name] = array
    return tensors


def from_released(tensors: Mapping[str, np.ndarray], config: NextDiTConfig) -> dict:
    """Our parameters, from tensors under released names: the inverse of `released`."""
    expected = {n.format(i) for n in RULES for i in range(config.depth)}
    refuse_leftovers(tensors, expected)
    flat = {}
    for name, (path, transforms) in RULES.items():
        if "{}" in name:
            array = np.stack([tensors[name.format(i)] for i in range(config.depth)])
        else:
            array = np.asarray(tensors[name])
        if "T" in transforms:
            array = array.swapaxes(-1, -2)
        if "R" in transforms:
            array = permuted(array, halves_from_pairs(config.width // config.heads))
        flat[path] = array
    return unflattened(flat)


def permuted(array: np.ndarray, order: np.ndarray) -> np.ndarray:
    """`array` with the channels of every head along its last axis in another order."""
    heads = rearrange(array, "... (k h) -> ... k h", h=len(order))
    return rearrange(heads[..., order], "... k h -> ... (k h)")


def refuse_leftovers(found: Mapping, expected: set[str]) -> None:
    """Raises, listing all, where names are missing or unknown."""
    missing, unknown = sorted(expected - set(found)), sorted(set(found) - expected)
    if missing or unknown:
        raise InputError(
            f"These weights are not a Next-DiT's: missing {missing}, unknown {unknown}."
        )


def flattened(tree: Mapping, prefix: str = "") -> dict:
    """Leaves by slash-joined path."""
    flat = {}
    for name, value in tree.items():
        flat |= (
            flattened(value, f"{prefix}{name}/")
            if isinstance(value, Mapping)
            else {prefix + name: value}
        )
    return flat


def unflattened(flat: Mapping) -> dict:
    """The inverse of `flattened`."""
    tree: dict = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        at = tree
        for parent in parents:
            at = at.setdefault(parent, {})
        at[leaf] = value
    return tree
