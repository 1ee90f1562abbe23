"""Attention with grouped keys, segments and a soft cap: several backends, one signature.

A query sees the keys of its own segment; keys of segment -1 (padding) are seen by none, and a query
that sees no key gets zeros.  Keys and values that neighbouring heads share are never repeated.
Logits are float32: s = q.k / sqrt(h), capped as cap tanh(s / cap) where a cap is asked for.
"""

from typing import NamedTuple

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from onediff_jax.errors import InputError
from onediff_jax.ops import device
from onediff_jax.ops.attention.backend import Case
from onediff_jax.ops.attention.chunked import CHUNKED
from onediff_jax.ops.attention.cudnn import CUDNN
from onediff_jax.ops.attention.flash import FLASH
from onediff_jax.ops.attention.reference import REFERENCE
from onediff_jax.ops.attention.splash import SPLASH
from onediff_jax.ops.attention.triton import TRITON

# In the order in which `auto` looks at them; it takes the first that is automatic on the device and
# serves the case, and `chunked` is automatic everywhere and serves every case.
BACKENDS = {
    "splash": SPLASH,
    "flash": FLASH,
    "cudnn": CUDNN,
    "triton": TRITON,
    "chunked": CHUNKED,
    "reference": REFERENCE,
}
AUTO = "auto"
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

    Query head i reads key head i // (k/g), or, `tiled`, key head i mod g.  Raises InputError where
    `backend` does not serve the case on this device.
    """
    case = Case(q.shape[3], q.shape[1], k.shape[1], softcap, q.dtype, device.partitioned())
    backend = chosen(backend, case, device.kind()).backend
    if tiled:  # keys of prompts are few: repeating them moves less than reordering queries
        k, v = (jnp.tile(x, (1, 1, q.shape[2] // x.shape[2], 1)) for x in (k, v))
    grouped = rearrange(q, "b n (g r) h -> b n g r h", g=k.shape[2])
    attended = BACKENDS[backend].attend(grouped, k, v, q_segments, k_segments, softcap)
    return rearrange(attended, "b n g r h -> b n (g r) h").astype(q.dtype)


class Choice(NamedTuple):
    """A backend, and what it is."""

    backend: str
    what: str


def chosen(asked: str, case: Case, kind: str) -> Choice:
    """The backend for a case on a device of that kind (as JAX names it): the one asked for, or
    the first automatic one that serves the case.

    Raises InputError where the one asked for does not serve the case.
    """
    serving = [name for name, each in BACKENDS.items() if each.refusal(case, kind) is None]
    if asked == AUTO:
        asked = next(name for name in serving if BACKENDS[name].automatic(kind))
    if asked in serving:
        return Choice(asked, BACKENDS[asked].what)
    raise InputError(
        f"model.attention is {asked!r}, which cannot serve this model here: "
        f"{BACKENDS[asked].refusal(case, kind)}; set it to {' or '.join((AUTO, *serving))}."
    )


def described(asked: str, row: Case, prompts: Case) -> str:
    """A line that says what is chosen within the row and over prompts, and what it is."""
    own, text = (chosen(asked, case, device.kind()) for case in (row, prompts))
    return (
        f"attention: {own.backend} within the row ({own.what}), {text.backend} over prompts "
        f"({text.what})"
    )
