"""Attention with grouped keys, segments and a soft cap: several backends, one signature, one truth.

A query sees the keys of its own segment; keys of segment -1 (padding) are seen by none, and a query
that sees no key gets zeros.  Keys and values of grouped heads are never repeated.  Logits are
float32: s = q.k / sqrt(h), capped as cap tanh(s / cap) where a cap is asked.
"""

from einops import rearrange
from jaxtyping import Array, Float, Int

from onediff_jax.errors import InputError
from onediff_jax.ops.attention_chunked import chunked
from onediff_jax.ops.attention_reference import reference


def attend(
    q: Float[Array, "b n k h"],
    k: Float[Array, "b m g h"],
    v: Float[Array, "b m g h"],
    q_segments: Int[Array, "b n"],
    k_segments: Int[Array, "b m"],
    *,
    softcap: float | None = None,
    tiled: bool = False,
    backend: str = "chunked",
) -> Float[Array, "b n k h"]:
    """Attention of queries over keys of their segment, in the type of `q`.

    Query head i reads key head i // (k/g), or, `tiled`, key head i mod g.
    """
    if backend not in BACKENDS:
        raise InputError(f"There is no attention {backend!r}; it can be {', '.join(BACKENDS)}.")
    heads = "(r g)" if tiled else "(g r)"
    grouped = rearrange(q, f"b n {heads} h -> b n g r h", g=k.shape[2])
    attended = BACKENDS[backend](grouped, k, v, q_segments, k_segments, softcap)
    return rearrange(attended, f"b n g r h -> b n {heads} h").astype(q.dtype)


BACKENDS = {"reference": reference, "chunked": chunked}
