"""Attention with grouped keys, segments and a soft cap: several backends, one signature, one truth.

A query sees the keys of its own segment; keys of segment -1 (padding) are seen by none, and a query
that sees no key gets zeros.  Keys and values of grouped heads are never repeated.  Logits are
float32: s = q.k / sqrt(h), capped as cap tanh(s / cap) where a cap is asked.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from onediff_jax.errors import InputError

NOTHING = -1e30  # a masked logit: finite, so that the difference of two of them is a number
BLOCK = 512  # keys that the chunked backend looks at together


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


def logits_of(q: Array, k: Array, softcap: float | None) -> Float[Array, "b g r n m"]:
    """Scaled, capped scores, float32."""
    scores = jnp.einsum("bngrh,bmgh->bgrnm", q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def visible(
    q_segments: Int[Array, "b n"], k_segments: Int[Array, "b m"]
) -> Bool[Array, "b 1 1 n m"]:
    """Which keys every query sees."""
    same = q_segments[:, :, None] == k_segments[:, None, :]
    return (same & (k_segments >= 0)[:, None, :])[:, None, None]


def weights_of(logits: Array, seen: Array, highest: Array) -> Array:
    """exp(logits - highest) on visible keys, 0 elsewhere."""
    return jnp.where(seen, jnp.exp(logits - highest[..., None]), 0)


def reference(q, k, v, q_segments, k_segments, softcap):
    """All scores at once: the truth that the other backends are tested against."""
    seen = visible(q_segments, k_segments)
    logits = jnp.where(seen, logits_of(q, k, softcap), NOTHING)
    weights = weights_of(logits, seen, jax.lax.stop_gradient(logits.max(-1)))
    shares = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)
    return jnp.einsum(
        "bgrnm,bmgh->bngrh", shares.astype(v.dtype), v, preferred_element_type=jnp.float32
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def chunked(q, k, v, q_segments, k_segments, softcap):
    """Online softmax over blocks of keys in plain XLA, which never holds the scores of all keys.

    Its gradient is written by hand, after FlashAttention-2 (Dao 2023): scores are made again block
    by block from the logarithm of their sum.
    """
    return chunked_forward(q, k, v, q_segments, k_segments, softcap)[0]


def chunked_forward(q, k, v, q_segments, k_segments, softcap):
    """Output and what the backward pass keeps: the inputs, the output and log(sum(exp(logits)))."""
    b, n, g, r, h = q.shape

    def visit(carry, block):
        acc, highest, total = carry
        k_block, v_block, segments = block
        seen = visible(q_segments, segments)
        logits = jnp.where(seen, logits_of(q, k_block, softcap), NOTHING)
        higher = jnp.maximum(highest, logits.max(-1))
        weights = weights_of(logits, seen, higher)
        fade = jnp.exp(highest - higher)
        fresh = jnp.einsum(
            "bgrnm,bmgh->bgrnh",
            weights.astype(v.dtype),
            v_block,
            preferred_element_type=jnp.float32,
        )
        return (acc * fade[..., None] + fresh, higher, total * fade + weights.sum(-1)), None

    empty = (
        jnp.zeros((b, g, r, n, h), jnp.float32),
        jnp.full((b, g, r, n), NOTHING, jnp.float32),
        jnp.zeros((b, g, r, n), jnp.float32),
    )
    (acc, highest, total), _ = over_blocks(visit, empty, blocks_of(k, v, k_segments))
    total = jnp.maximum(total, 1e-30)
    out = rearrange(acc / total[..., None], "b g r n h -> b n g r h")
    return out, (q, k, v, q_segments, k_segments, out, highest + jnp.log(total))


def chunked_backward(softcap, kept, d_out):
    """Cotangents of q, k and v, block by block."""
    q, k, v, q_segments, k_segments, out, log_total = kept
    inner = rearrange((d_out * out).sum(-1), "b n g r -> b g r n")
    d_out = d_out.astype(v.dtype)

    def visit(d_q, block):
        k_block, v_block, segments = block
        seen = visible(q_segments, segments)
        logits = logits_of(q, k_block, softcap)
        shares = weights_of(logits, seen, log_total)
        d_v = jnp.einsum("bgrnm,bngrh->bmgh", shares.astype(v.dtype), d_out)
        d_shares = jnp.einsum(
            "bngrh,bmgh->bgrnm", d_out, v_block, preferred_element_type=jnp.float32
        )
        d_scores = shares * (d_shares - inner[..., None]) * q.shape[-1] ** -0.5
        if softcap is not None:
            d_scores = d_scores * (1 - jnp.square(logits / softcap))
        d_scores = d_scores.astype(q.dtype)
        d_k = jnp.einsum("bgrnm,bngrh->bmgh", d_scores, q)
        fresh = jnp.einsum(
            "bgrnm,bmgh->bngrh", d_scores, k_block, preferred_element_type=jnp.float32
        )
        return d_q + fresh, (d_k, d_v)

    blocks = blocks_of(k, v, k_segments)
    d_q, (d_k, d_v) = over_blocks(visit, jnp.zeros(q.shape, jnp.float32), blocks)
    d_k, d_v = (rearrange(d, "c b m g h -> b (c m) g h")[:, : k.shape[1]] for d in (d_k, d_v))
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None


def blocks_of(k, v, segments):
    """Keys, values and segments in blocks along a new first axis, padded with keys nobody sees."""
    size = min(BLOCK, k.shape[1])
    padding = -k.shape[1] % size
    k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (k, v))
    segments = jnp.pad(segments, ((0, 0), (0, padding)), constant_values=-1)
    return (
        rearrange(k, "b (c m) g h -> c b m g h", m=size),
        rearrange(v, "b (c m) g h -> c b m g h", m=size),
        rearrange(segments, "b (c m) -> c b m", m=size),
    )


def over_blocks(visit, start, blocks):
    """`jax.lax.scan`, without its loop where there is one block."""
    if blocks[0].shape[0] > 1:
        return jax.lax.scan(visit, start, blocks)
    end, made = visit(start, jax.tree.map(lambda x: x[0], blocks))
    return end, jax.tree.map(lambda x: x[None], made)


chunked.defvjp(chunked_forward, chunked_backward)

BACKENDS = {"reference": reference, "chunked": chunked}
