"""Attention with grouped keys, segments and a soft cap: several backends, one signature, one truth.

A query sees the keys of its own segment; keys of segment -1 (padding) are seen by none, and a query
that sees no key gets zeros.  Keys and values that neighbouring heads share are never repeated.
Logits are float32: s = q.k / sqrt(h), capped as cap tanh(s / cap) where a cap is asked.
"""

from typing import NamedTuple

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from onediff_jax.errors import InputError
from onediff_jax.ops import device
from onediff_jax.ops.attention_chunked import chunked
from onediff_jax.ops.attention_cudnn import cudnn
from onediff_jax.ops.attention_flash import flash
from onediff_jax.ops.attention_reference import reference
from onediff_jax.ops.attention_splash import splash
from onediff_jax.ops.attention_triton import triton_attention

BACKENDS = {
    "reference": reference,
    "chunked": chunked,
    "flash": flash,
    "splash": splash,
    "triton": triton_attention,
    "cudnn": cudnn,
}
AUTO = "auto"  # the one that suits the device
NAMES = (AUTO, *BACKENDS)


def attend(
    q: Float[Array, "b n k h"],
    k: Float[Array, "b m g h"],
    v: Float[Array, "b m g h"],
    q_segments: Int[Array, "b n"],
    k_segments: Int[Array, "b m"],
    *,
    softcap: float | None = None,
    tiled: bool = False,
    backend: str = AUTO,
) -> Float[Array, "b n k h"]:
    """Attention of queries over keys of their segment, in the type of `q`.

    Query head i reads key head i // (k/g), or, `tiled`, key head i mod g.
    """
    backend = chosen(backend, softcap, device.kind()).backend
    if tiled:  # keys of prompts are few: repeating them moves less than reordering queries
        k, v = (jnp.tile(x, (1, 1, q.shape[2] // x.shape[2], 1)) for x in (k, v))
    grouped = rearrange(q, "b n (g r) h -> b n g r h", g=k.shape[2])
    attended = BACKENDS[backend](grouped, k, v, q_segments, k_segments, softcap)
    return rearrange(attended, "b n g r h -> b n (g r) h").astype(q.dtype)


class Choice(NamedTuple):
    """A backend, and why this one."""

    backend: str
    reason: str


def chosen(asked: str, softcap: float | None, kind: str) -> Choice:
    """The backend for a device of that kind (as JAX names it): the one asked for, or what suits.

    Raises InputError where there is none of that name, or the device or a cap rules it out.
    """
    suited = suitable(softcap, kind)
    if asked == AUTO:
        return suited[0]
    for choice in suited:
        if choice.backend == asked:
            return choice
    wanted = "attention without a cap" if softcap is None else "attention with a cap"
    raise InputError(
        f"model.attention is {asked!r}, which is no backend for {wanted} on {kind}; it can be "
        f"{', '.join([AUTO, *(choice.backend for choice in suited)])}."
    )


def suitable(softcap: float | None, kind: str) -> tuple[Choice, ...]:
    """What can be done on a device of that kind, the best first."""
    plain = Choice("chunked", "plain XLA, for any device"), Choice("reference", "for tests")
    if kind.startswith("TPU") and kind != "TPU v2":
        ours = Choice("flash", "our kernel for TPUs")  # compiled for all of them, run on none yet
        if kind == "TPU v3":
            return *plain[:1], ours, *plain[1:]
        return Choice("splash", "JAX's kernel for TPU v4 and later"), ours, *plain
    if kind.startswith("NVIDIA"):
        kernel = Choice("triton", "a kernel with segments and a cap")
        uncapped = (Choice("cudnn", "no cap is asked"),) if softcap is None else ()
        return *uncapped, kernel, *plain
    return plain


def described(asked: str, softcap: float | None) -> str:
    """A line that says what is chosen for the row and for its prompts, and why."""
    row, text = (chosen(asked, cap, device.kind()) for cap in (softcap, None))
    return (
        f"attention: {row.backend} within the row ({row.reason}), {text.backend} over prompts "
        f"({text.reason})"
    )
