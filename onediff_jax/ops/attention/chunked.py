"""Attention in plain XLA, block by block of queries, which never holds all logits at once.

It serves every case on every device, and is what `auto` takes on CPUs, GPUs, TPU v2 and v3.  It is
written for what the compiler for TPU v3 makes of it (docs/log.md):

- Tokens come last in q, k and v ([b g r h n], [b g h m]), so that heads of 120 channels are split
  along sublanes and no matmul needs a transpose.
- A matmul whose result has one consumer is fused into that consumer, and its result never leaves
  the chip.  So the forward pass is one fusion of two matmuls, and in the backward pass a matmul is
  recomputed (`apart`) rather than consumed twice.
- The matmul with the values also sums the weights, as one more channel of the values.
- A cap bounds logits, so that weights need no maximum.

Its gradient is written by hand, after FlashAttention-2 (Dao 2023): logits are recomputed, and
normalized by the logarithm of their exponentials' sum.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from onediff_jax.ops.attention.backend import Backend, no_refusal
from onediff_jax.ops.attention.reference import (
    ATTENDED,
    HARMLESS,
    LOG_TOTAL,
    NOTHING,
    capped,
    einsum_f32,
    visible,
    weights_of,
)

_BLOCK = 1024  # queries of a block,
_KEYS = 4096  # with this many keys or more; with fewer keys, a block has more queries
NOBODY = -1  # the segment of padding
apart = jax.lax.optimization_barrier  # what is computed from its result is recomputed, not shared


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def chunked(
    q: Float[Array, "b n g r h"],
    k: Float[Array, "b m g h"],
    v: Float[Array, "b m g h"],
    q_segments: Int[Array, "b n"],
    k_segments: Int[Array, "b m"],
    softcap: float | None,
) -> Float[Array, "b n g r h"]:
    """Attention of grouped queries, in the type of `q`."""
    return _forward(q, k, v, q_segments, k_segments, softcap)[0]


def _forward(q, k, v, q_segments, k_segments, softcap):
    """Output and what the backward pass keeps: the inputs, the output and log(sum(exp(logits)))."""
    q, k, v = tokens_last(q), tokens_last(k), tokens_last(v)
    q, q_segments, k_segments = tied(q, q_segments, k_segments)
    summed = jnp.concatenate([v, jnp.ones_like(v[:, :, :1])], 2)

    def visit(block):
        q, segments = block
        seen = visible(segments, k_segments)
        highest = highest_logits(q, k, seen, softcap)
        weights = weights_of(logits_of(q, k, softcap), seen, highest[..., None])
        both = einsum_f32("bgrnm,bghm->bgrhn", weights.astype(v.dtype), summed)
        total = jnp.maximum(both[:, :, :, -1], 1e-30)
        out = both[:, :, :, :-1] / total[:, :, :, None]
        return (out.astype(q.dtype), highest + jnp.log(total)), ()

    (out, log_total), _ = over_blocks(visit, (q, q_segments), k.shape[3])
    out, log_total = checkpoint_name(out, ATTENDED), checkpoint_name(log_total, LOG_TOTAL)
    kept = (q, k, v, q_segments, k_segments, out, log_total)
    return rearrange(out, "b g r h n -> b n g r h"), kept


def _backward(softcap, kept, d_out):
    """Cotangents of q, k and v."""
    q, k, v, q_segments, k_segments, out, log_total = kept
    d_out = tokens_last(d_out).astype(v.dtype)
    d_out, q_segments, k_segments = tied(d_out, q_segments, k_segments)

    def visit(block):
        q, segments, out, log_total, d_out = block
        inner = einsum_f32("bgrhn,bgrhn->bgrn", d_out, out)
        logits = logits_of(q, k, softcap)
        shares = weights_of(logits, visible(segments, k_segments), log_total[..., None])
        slopes = shares * q.shape[3] ** -0.5
        if softcap is not None:
            slopes = slopes * (1 - jnp.square(logits / softcap))
        shares, slopes = apart((shares.astype(v.dtype), slopes.astype(q.dtype)))

        def d_logits(d_out, v):
            d_shares = einsum_f32("bgrhn,bghm->bgrnm", d_out, v)
            return (slopes * (d_shares - inner[..., None])).astype(q.dtype)

        d_q = einsum_f32("bgrnm,bghm->bgrhn", d_logits(d_out, v), k)
        d_k = einsum_f32("bgrnm,bgrhn->bghm", d_logits(*apart((d_out, v))), q)
        d_v = einsum_f32("bgrnm,bgrhn->bghm", shares, d_out)
        return d_q.astype(q.dtype), (d_k, d_v)

    d_q, (d_k, d_v) = over_blocks(visit, (q, q_segments, out, log_total, d_out), k.shape[3])
    d_k, d_v = (rearrange(d, "b g h m -> b m g h") for d in (d_k, d_v))
    d_q = rearrange(d_q, "b g r h n -> b n g r h")
    return d_q, d_k.astype(k.dtype), d_v.astype(v.dtype), None, None


chunked.defvjp(_forward, _backward)


def tied(x: Array, *segments: Array) -> tuple[Array, ...]:
    """`x` and segments, so that what follows from segments alone is not computed before `x` is.

    Masks are as large as logits and the same in every layer.  Without this, JAX computes them once
    for all layers and keeps them for the backward pass: 8 GiB for 16,384 tokens.
    """
    return jax.lax.optimization_barrier((x, *segments))


def tokens_last(x: Float[Array, "b n *heads h"]) -> Float[Array, "b *heads h n"]:
    """`x` with its tokens as the last axis."""
    return jnp.moveaxis(x, 1, -1)


def logits_of(q, k, softcap):
    """Logits of queries and keys."""
    return capped(einsum_f32("bgrhn,bghm->bgrnm", q, k), q.shape[3], softcap)


def highest_logits(q, k, seen, softcap) -> Float[Array, "b g r n"]:
    """The highest visible logit of every query, or 0 where a cap keeps all of them harmless."""
    if softcap is not None and softcap <= HARMLESS:
        return jnp.zeros((*q.shape[:3], q.shape[4]))
    q, k = apart((q, k))
    return jnp.where(seen, logits_of(q, k, softcap), NOTHING).max(-1)


def over_blocks(visit: Callable, arrays: Any, keys: int) -> tuple[Any, Any]:
    """`visit` of every block of queries, which are the last axis of `arrays`; each sees all keys.

    It returns what belongs to its queries, which is joined, and what is summed over all blocks.
    """
    n = jax.tree.leaves(arrays)[0].shape[-1]
    size = _BLOCK * max(_KEYS // keys, 1)
    if n <= size:
        return visit(arrays)
    padding = -n % size

    def cut(x):
        fill = NOBODY if jnp.issubdtype(x.dtype, jnp.integer) else 0
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)], constant_values=fill)
        return jnp.moveaxis(x.reshape(*x.shape[:-1], -1, size), -2, 0)

    def join(x):
        x = jnp.moveaxis(x, 0, -2)
        return x.reshape(*x.shape[:-2], -1)[..., :n]

    blocks = jax.tree.map(cut, arrays)
    _, sums = jax.eval_shape(visit, jax.tree.map(lambda x: x[0], blocks))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums)

    def step(total, block):
        own, more = visit(block)
        return jax.tree.map(jnp.add, total, more), own

    total, own = jax.lax.scan(step, zeros, blocks)
    return jax.tree.map(join, own), total


CHUNKED = Backend(chunked, "plain XLA, for any device", no_refusal, lambda kind: True)
