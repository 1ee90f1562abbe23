"""A kernel for GPUs (Pallas, by Triton) with segments and soft cap, forward and backward.

After FlashAttention-2 (Dao 2023): a program keeps a block of queries and walks over blocks of keys
with an online softmax; backward, one program per block of queries gives their cotangents, and one
per block of keys theirs.  Heads are padded to a power of two and tokens to blocks in here alone.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from onediff_jax.ops.attention.backend import Backend, Case, kernel_refusal
from onediff_jax.ops.attention.reference import ATTENDED, LOG_TOTAL, NOTHING, capped, weights_of

_BLOCK = 64  # queries, and keys, of a block
_INTERPRET = False  # tests run the kernel without a GPU
SETTINGS = triton.CompilerParams(num_warps=4, num_stages=2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def triton_attention(
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
    n, h = q.shape[1], q.shape[-1]
    arrays = _padded(q, k, v, q_segments, k_segments)
    b, tokens, g, r, _ = arrays[0].shape
    out, log_total = pl.pallas_call(
        functools.partial(_forward_kernel, softcap=softcap, head=h),
        grid=(tokens // _BLOCK, b, g * r),
        in_specs=[queries(arrays[0]), keys(arrays[1], r), keys(arrays[2], r), *_segments(arrays)],
        out_specs=[queries(arrays[0]), sums(r)],
        out_shape=[
            jax.ShapeDtypeStruct(arrays[0].shape, q.dtype),
            jax.ShapeDtypeStruct((b, g, r, tokens), jnp.float32),
        ],
        compiler_params=SETTINGS,
        interpret=_INTERPRET,
    )(*arrays)
    out = checkpoint_name(out[:, :n, ..., :h], ATTENDED)
    log_total = checkpoint_name(log_total[..., :n], LOG_TOTAL)
    return out, (q, k, v, q_segments, k_segments, out, log_total)


def _backward(softcap, kept, d_out):
    """Cotangents of q, k and v."""
    q, k, v, q_segments, k_segments, out, log_total = kept
    n, m, h = q.shape[1], k.shape[1], q.shape[-1]
    inner = jnp.einsum("bngrh,bngrh->bgrn", d_out, out, preferred_element_type=jnp.float32)
    q, k, v, *both = _padded(q, k, v, q_segments, k_segments)
    d_out = padded_tokens(d_out.astype(q.dtype))
    rest = [(0, 0)] * 3 + [(0, -n % _BLOCK)]
    arrays = (q, k, v, *both, d_out, jnp.pad(inner, rest), jnp.pad(log_total, rest))
    b, tokens, g, r, _ = q.shape
    settings = dict(softcap=softcap, head=h)
    d_q = pl.pallas_call(
        functools.partial(queries_kernel, **settings),
        grid=(tokens // _BLOCK, b, g * r),
        in_specs=[
            queries(q),
            keys(k, r),
            keys(v, r),
            *_segments(arrays),
            queries(q),
            sums(r),
            sums(r),
        ],
        out_specs=queries(q),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=SETTINGS,
        interpret=_INTERPRET,
    )(*arrays)
    d_k, d_v = pl.pallas_call(
        functools.partial(keys_kernel, **settings),
        grid=(k.shape[1] // _BLOCK, b, g),
        in_specs=[
            pl.BlockSpec((None, tokens, None, r, q.shape[-1]), lambda i, b, g: (b, 0, g, 0, 0)),
            *[pl.BlockSpec((None, _BLOCK, None, q.shape[-1]), lambda i, b, g: (b, i, g, 0))] * 2,
            pl.BlockSpec((None, tokens), lambda i, b, g: (b, 0)),
            pl.BlockSpec((None, _BLOCK), lambda i, b, g: (b, i)),
            pl.BlockSpec((None, tokens, None, r, q.shape[-1]), lambda i, b, g: (b, 0, g, 0, 0)),
            *[pl.BlockSpec((None, None, r, tokens), lambda i, b, g: (b, g, 0, 0))] * 2,
        ],
        out_specs=[pl.BlockSpec((None, _BLOCK, None, q.shape[-1]), lambda i, b, g: (b, i, g, 0))]
        * 2,
        out_shape=[jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)],
        compiler_params=SETTINGS,
        interpret=_INTERPRET,
    )(*arrays)
    return d_q[:, :n, ..., :h], d_k[:, :m, :, :h], d_v[:, :m, :, :h], None, None


triton_attention.defvjp(_forward, _backward)


def _forward_kernel(
    q_ref, k_ref, v_ref, q_segments_ref, k_segments_ref, out_ref, log_total_ref, *, softcap, head
):
    """Output and log(sum(exp(logits))) of a block of queries."""
    q, q_segments = q_ref[...], q_segments_ref[...]

    def visit(i, carry):
        acc, highest, total = carry
        block = pl.ds(i * _BLOCK, _BLOCK)
        k, v = k_ref[block, :], v_ref[block, :]
        seen = q_segments[:, None] == k_segments_ref[block][None, :]
        logits = jnp.where(seen, capped(pl.dot(q, k, trans_b=True), head, softcap), NOTHING)
        higher = jnp.maximum(highest, logits.max(1))
        weights = weights_of(logits, seen, higher[:, None])
        fade = jnp.exp(highest - higher)
        acc = acc * fade[:, None] + pl.dot(weights.astype(v.dtype), v)
        return acc, higher, total * fade + weights.sum(1)

    empty = (
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(q.shape[:1], NOTHING, jnp.float32),
        jnp.zeros(q.shape[:1], jnp.float32),
    )
    acc, highest, total = jax.lax.fori_loop(0, k_ref.shape[0] // _BLOCK, visit, empty)
    total = jnp.maximum(total, 1e-30)
    out_ref[...] = (acc / total[:, None]).astype(out_ref.dtype)
    log_total_ref[...] = highest + jnp.log(total)


def shares_and_d_logits(q, k, v, seen, d_out, inner, log_total, softcap, head):
    """Shares of a block of queries in a block of keys, and the cotangent of their logits."""
    logits = capped(pl.dot(q, k, trans_b=True), head, softcap)
    shares = weights_of(logits, seen, log_total[:, None])
    d_logits = shares * (pl.dot(d_out, v, trans_b=True) - inner[:, None]) * head**-0.5
    if softcap is not None:
        d_logits = d_logits * (1 - (logits / softcap) * (logits / softcap))
    return shares.astype(q.dtype), d_logits.astype(q.dtype)


def queries_kernel(
    q_ref,
    k_ref,
    v_ref,
    q_segments_ref,
    k_segments_ref,
    d_out_ref,
    inner_ref,
    log_total_ref,
    d_q_ref,
    *,
    softcap,
    head,
):
    """Cotangent of a block of queries."""
    q, d_out, q_segments = q_ref[...], d_out_ref[...], q_segments_ref[...]
    inner, log_total = inner_ref[...], log_total_ref[...]

    def visit(i, d_q):
        block = pl.ds(i * _BLOCK, _BLOCK)
        k, v = k_ref[block, :], v_ref[block, :]
        seen = q_segments[:, None] == k_segments_ref[block][None, :]
        _, d_logits = shares_and_d_logits(q, k, v, seen, d_out, inner, log_total, softcap, head)
        return d_q + pl.dot(d_logits, k)

    blocks = k_ref.shape[0] // _BLOCK
    d_q = jax.lax.fori_loop(0, blocks, visit, jnp.zeros(q.shape, jnp.float32))
    d_q_ref[...] = d_q.astype(d_q_ref.dtype)


def keys_kernel(
    q_ref,
    k_ref,
    v_ref,
    q_segments_ref,
    k_segments_ref,
    d_out_ref,
    inner_ref,
    log_total_ref,
    d_k_ref,
    d_v_ref,
    *,
    softcap,
    head,
):
    """Cotangents of a block of keys and values, summed over the queries that read their head."""
    k, v, k_segments = k_ref[...], v_ref[...], k_segments_ref[...]

    def visit(i, carry):
        d_k, d_v = carry
        block = pl.ds(i * _BLOCK, _BLOCK)
        seen = q_segments_ref[block][:, None] == k_segments[None, :]
        for head_of_group in range(q_ref.shape[1]):
            q, d_out = q_ref[block, head_of_group, :], d_out_ref[block, head_of_group, :]
            inner, log_total = inner_ref[head_of_group, block], log_total_ref[head_of_group, block]
            shares, d_logits = shares_and_d_logits(
                q, k, v, seen, d_out, inner, log_total, softcap, head
            )
            d_k += pl.dot(d_logits, q, trans_a=True)
            d_v += pl.dot(shares, d_out, trans_a=True)
        return d_k, d_v

    zeros = jnp.zeros(k.shape, jnp.float32)
    d_k, d_v = jax.lax.fori_loop(0, q_ref.shape[0] // _BLOCK, visit, (zeros, zeros))
    d_k_ref[...], d_v_ref[...] = d_k.astype(d_k_ref.dtype), d_v.astype(d_v_ref.dtype)


def queries(q) -> pl.BlockSpec:
    """A block of queries of a head."""
    r = q.shape[3]
    shape = (None, _BLOCK, None, None, q.shape[-1])
    return pl.BlockSpec(shape, lambda i, b, k: (b, i, k // r, k % r, 0))


def keys(k, r: int) -> pl.BlockSpec:
    """All keys of the head that r query heads read."""
    return pl.BlockSpec((None, k.shape[1], None, k.shape[-1]), lambda i, b, k: (b, 0, k // r, 0))


def _segments(arrays) -> list[pl.BlockSpec]:
    """The segments of a block of queries, and of all keys."""
    return [
        pl.BlockSpec((None, _BLOCK), lambda i, b, k: (b, i)),
        pl.BlockSpec((None, arrays[1].shape[1]), lambda i, b, k: (b, 0)),
    ]


def sums(r: int) -> pl.BlockSpec:
    """A number for each of a block of queries."""
    return pl.BlockSpec((None, None, None, _BLOCK), lambda i, b, k: (b, k // r, k % r, i))


def padded_tokens(x):
    """Tokens up to whole blocks, channels to a power of two."""
    width = max(16, pl.next_power_of_2(x.shape[-1]))
    middle = [(0, 0)] * (x.ndim - 3)
    rest = -x.shape[1] % _BLOCK
    return jnp.pad(x, [(0, 0), (0, rest), *middle, (0, width - x.shape[-1])])


def _padded(q, k, v, q_segments, k_segments):
    """The inputs in whole blocks; keys that nobody sees are of segment -2, queries are never."""
    q_segments = jnp.pad(q_segments, ((0, 0), (0, -q.shape[1] % _BLOCK)), constant_values=-1)
    k_segments = jnp.where(k_segments < 0, -2, k_segments)
    k_segments = jnp.pad(k_segments, ((0, 0), (0, -k.shape[1] % _BLOCK)), constant_values=-2)
    return *map(padded_tokens, (q, k, v)), q_segments, k_segments


def _refusal(case: Case, kind: str) -> str | None:
    """Why it cannot serve a case on that kind of device, or None."""
    return kernel_refusal(case, kind, kind.startswith("NVIDIA"), "an NVIDIA GPU", widest=128)


# No GPU has run it yet: `auto` leaves it alone until `TEST_PLATFORM=cuda pytest -m gpu` has passed.
TRITON = Backend(triton_attention, "our kernel for GPUs", _refusal, lambda kind: False)
