"""Random parameters and inputs: nothing at zero, so that no test passes because a gate is shut."""

import zlib
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from onediff_jax.ops.layout import Layout


def drawn_params(shapes, seed: int = 0):
    """Every parameter at random: activations of order 1, weights around 1, gates open."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        name = path[-1].key
        noise = rng.standard_normal(shape.shape).astype(np.float32)
        if name == "kernel":
            return noise / np.sqrt(shape.shape[-2])
        return 1 + 0.3 * noise if name == "scale" else 0.5 * noise if name == "bias" else noise

    return jax.tree_util.tree_map_with_path(draw, nn.meta.unbox(shapes))


def drawn_inputs(
    layout: Layout, features: int, text_width: int, b: int = 2, length: int = 7, seed: int = 1
):
    """Inputs of the denoiser, every slot full with one example, prompts of unequal length."""
    rng = np.random.default_rng(seed)
    examples = [e for e, slot in enumerate(layout.slots) for _ in range(slot.views)]
    view = [v for slot in layout.slots for v in range(slot.views)]
    sizes = np.bincount(layout.view_of_token)
    side = [max(s for s in range(1, n + 1) if n % s == 0 and s * s <= n) for n in sizes]
    positions = np.concatenate(
        [
            np.stack([np.full(n, v), np.arange(n) // (n // s), np.arange(n) % (n // s)], -1)
            for n, s, v in zip(sizes, side, view, strict=True)
        ]
    )
    inputs = dict(
        patches=rng.standard_normal((b, layout.tokens, features)).astype(np.float32),
        sigmas=rng.uniform(0.01, 1, (b, layout.views)).astype(np.float32),
        positions=np.repeat(positions[None], b, 0).astype(np.int32),
        example_of_view=np.repeat(np.array(examples, np.int32)[None], b, 0),
        token_mask=np.ones((b, layout.tokens), bool),
        text=rng.standard_normal((b, layout.examples, length, text_width)).astype(np.float32),
        text_mask=np.arange(length) < rng.integers(2, length + 1, (b, layout.examples, 1)),
    )
    return {name: jnp.asarray(array) for name, array in inputs.items()}


def relative_error(found, expected) -> float:
    """Norm of the difference over norm."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def drawn_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Released tensors at random, each drawn by its name: as `drawn_params`, nothing at zero.

    Queries of T5, whose logits are not scaled, are divided by the root of a head's 8 channels.
    """
    tensors = {}
    for name, shape in shapes.items():
        x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
        if name.endswith("bias"):
            tensors[name] = 0.5 * x
        elif name.endswith("gate"):
            tensors[name] = x
        elif len(shape) == 1:
            tensors[name] = 1 + 0.3 * x
        else:
            fan_in = np.prod(shape[1:]) * (8 if ".q." in name else 1)
            tensors[name] = x / np.float32(np.sqrt(fan_in))
    return tensors
