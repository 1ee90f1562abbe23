"""A kernel for TPUs (Pallas) with segments and soft cap, forward and backward.

Logits are keys x queries, tokens last in queries and results, as the network has them: nothing is
summed across lanes or transposed in a kernel, and maxima, sums and logarithms of sums are rows.
Tokens are padded only where there are several blocks and they do not divide them.
The compiler of kernels for v3 refuses matmuls of bfloat16 (E2001), but multiplies float32 operands
in one pass of the matrix unit: there, blocks are loaded as they are and widened on the chip.

After FlashAttention-2 (Dao 2023).  Forward, a program has a block of queries of one head and goes
over blocks of keys.  Backward, a program has a block of keys of one head and goes over all queries
that read it; the cotangents of queries that several blocks of keys give are summed outside.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from onediff_jax.ops import device
from onediff_jax.ops.attention.backend import LANES, Backend, Case, kernel_refusal
from onediff_jax.ops.attention.reference import (
    ATTENDED,
    HARMLESS,
    LOG_TOTAL,
    NOTHING,
    capped,
    weights_of,
)

# Blocks are multiples of LANES where there are several.
QUERIES = 512  # in a block, at most
_KEYS = 1024  # in a block, at most
CHUNK = 256  # keys of a block whose logits are held at once, at most
# Axes of a grid: whether the cores of a chip that is one device (v4, v5p) share its programs.
# Programs that add to the same result go in order; interpretation would not tell if they did not.
SHARED, IN_ORDER = pltpu.PARALLEL, pltpu.ARBITRARY
_INTERPRET = False  # tests run the kernel without a TPU


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def flash(
    q: Float[Array, "b n g r h"],
    k: Float[Array, "b m g h"],
    v: Float[Array, "b m g h"],
    q_segments: Int[Array, "b n"],
    k_segments: Int[Array, "b m"],
    softcap: float | None,
) -> Float[Array, "b n g r h"]:
    """Attention of grouped queries, in the type of `q`."""
    return _forward(q, k, v, q_segments, k_segments, softcap)[0]


class Sizes(NamedTuple):
    """Tokens of blocks, and how many blocks there are."""

    queries: int
    query_blocks: int
    keys: int
    key_blocks: int

    @classmethod
    def of(cls, n: int, m: int) -> "Sizes":
        """Equal blocks, as few as the limits allow; one has all tokens and no others."""
        blocks = -(-n // QUERIES), -(-m // _KEYS)
        queries, keys = (
            x if y == 1 else -(-x // (y * LANES)) * LANES
            for x, y in zip((n, m), blocks, strict=True)
        )
        return cls(queries, blocks[0], keys, blocks[1])

    def of_queries(self, x: Array, fill: int = 0) -> Array:
        """`x` with its last axis, queries, filled up to whole blocks."""
        return filled(x, self.queries * self.query_blocks, -1, fill)

    def of_keys(self, x: Array, axis: int, fill: int = 0) -> Array:
        """`x` with that axis, keys, filled up to whole blocks."""
        return filled(x, self.keys * self.key_blocks, axis, fill)


def filled(x: Array, tokens: int, axis: int, fill: int) -> Array:
    """`x` with an axis of so many tokens."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, tokens - x.shape[axis])
    return jnp.pad(x, widths, constant_values=fill)


def _forward(q, k, v, q_segments, k_segments, softcap):
    """Output and what the backward pass keeps: the inputs, the output and log(sum(exp(logits)))."""
    n, m, h = q.shape[1], k.shape[1], q.shape[-1]
    sizes = Sizes.of(n, m)
    queries = sizes.of_queries(rearrange(q, "b n g r h -> b g r h n"))
    keys = sizes.of_keys(rearrange(k, "b m g h -> b g m h"), 2)
    values = sizes.of_keys(rearrange(v, "b m g h -> b g h m"), 3)
    b, g, r, _, tokens = queries.shape
    out, log_total = pl.pallas_call(
        functools.partial(_forward_kernel, softcap=softcap),
        grid=(b, g, r, sizes.query_blocks, sizes.key_blocks),
        in_specs=[
            pl.BlockSpec((1, 1, sizes.queries), lambda b, g, r, i, j: (b, 0, i)),
            pl.BlockSpec((1, sizes.keys, 1), lambda b, g, r, i, j: (b, j, 0)),
            pl.BlockSpec((1, 1, 1, h, sizes.queries), lambda b, g, r, i, j: (b, g, r, 0, i)),
            pl.BlockSpec((1, 1, sizes.keys, h), lambda b, g, r, i, j: (b, g, j, 0)),
            pl.BlockSpec((1, 1, h, sizes.keys), lambda b, g, r, i, j: (b, g, 0, j)),
        ],
        out_specs=[
            pl.BlockSpec((1, 1, 1, h, sizes.queries), lambda b, g, r, i, j: (b, g, r, 0, i)),
            pl.BlockSpec((1, 1, 1, 1, sizes.queries), lambda b, g, r, i, j: (b, g, r, 0, i)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(queries.shape, q.dtype),
            jax.ShapeDtypeStruct((b, g, r, 1, tokens), jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((h, sizes.queries), jnp.float32),
            pltpu.VMEM((1, sizes.queries), jnp.float32),
            pltpu.VMEM((1, sizes.queries), jnp.float32),
        ],
        cost_estimate=cost(2, b * g * r, sizes, h),
        compiler_params=pltpu.CompilerParams(dimension_semantics=(SHARED,) * 4 + (IN_ORDER,)),
        interpret=_INTERPRET,
        name=named("forward", softcap, sizes.keys),
    )(*_segments(q_segments, k_segments, sizes), queries, operands(keys), operands(values))
    out, log_total = out[..., :n], log_total[:, :, :, 0, :n]
    out, log_total = checkpoint_name(out, ATTENDED), checkpoint_name(log_total, LOG_TOTAL)
    kept = (q, k, v, q_segments, k_segments, out, log_total)
    return rearrange(out, "b g r h n -> b n g r h"), kept


def _backward(softcap, kept, d_out):
    """Cotangents of q, k and v."""
    q, k, v, q_segments, k_segments, out, log_total = kept
    n, m, h = q.shape[1], k.shape[1], q.shape[-1]
    sizes = Sizes.of(n, m)
    d_out = rearrange(d_out.astype(q.dtype), "b n g r h -> b g r h n")
    inner = jnp.einsum("bgrhn,bgrhn->bgrn", d_out, out, preferred_element_type=jnp.float32)
    queries = sizes.of_queries(rearrange(q, "b n g r h -> b g r h n"))
    keys = sizes.of_keys(rearrange(k, "b m g h -> b g m h"), 2)
    values = sizes.of_keys(rearrange(v, "b m g h -> b g m h"), 2)
    b, g, r, _, tokens = queries.shape
    block = pl.BlockSpec((1, 1, 1, h, sizes.queries), lambda b, g, j, r, i: (b, g, r, 0, i))
    row = pl.BlockSpec((1, 1, 1, 1, sizes.queries), lambda b, g, j, r, i: (b, g, r, 0, i))
    of_keys = pl.BlockSpec((1, 1, sizes.keys, h), lambda b, g, j, r, i: (b, g, j, 0))
    parts = jnp.float32 if sizes.key_blocks > 1 else q.dtype
    d_q, d_k, d_v = pl.pallas_call(
        functools.partial(backward_kernel, softcap=softcap),
        grid=(b, g, sizes.key_blocks, r, sizes.query_blocks),
        in_specs=[
            pl.BlockSpec((1, 1, sizes.queries), lambda b, g, j, r, i: (b, 0, i)),
            pl.BlockSpec((1, sizes.keys, 1), lambda b, g, j, r, i: (b, j, 0)),
            block,
            of_keys,
            pl.BlockSpec((1, 1, h, sizes.keys), lambda b, g, j, r, i: (b, g, 0, j)),
            of_keys,
            block,
            row,
            row,
        ],
        out_specs=[
            pl.BlockSpec((1, 1, 1, 1, h, sizes.queries), lambda b, g, j, r, i: (j, b, g, r, 0, i)),
            of_keys,
            of_keys,
        ],
        out_shape=[
            jax.ShapeDtypeStruct((sizes.key_blocks, *queries.shape), parts),
            jax.ShapeDtypeStruct(keys.shape, jnp.float32),
            jax.ShapeDtypeStruct(keys.shape, jnp.float32),
        ],
        cost_estimate=cost(5, b * g * r, sizes, h),
        compiler_params=pltpu.CompilerParams(dimension_semantics=(SHARED,) * 3 + (IN_ORDER,) * 2),
        interpret=_INTERPRET,
        name=named("backward", softcap, sizes.keys),
    )(
        *_segments(q_segments, k_segments, sizes),
        queries,
        operands(keys),
        operands(jnp.swapaxes(keys, 2, 3)),
        operands(values),
        sizes.of_queries(d_out),
        sizes.of_queries(inner)[:, :, :, None],
        sizes.of_queries(log_total)[:, :, :, None],
    )
    d_q = d_q[0] if sizes.key_blocks == 1 else d_q.sum(0).astype(q.dtype)
    d_q = rearrange(d_q[..., :n], "b g r h n -> b n g r h")
    d_k, d_v = (rearrange(d[:, :, :m], "b g m h -> b m g h") for d in (d_k, d_v))
    return d_q, d_k.astype(k.dtype), d_v.astype(v.dtype), None, None


flash.defvjp(_forward, _backward)


def _forward_kernel(
    q_segments, k_segments, q, k, v, out, log_total, acc, total, highest, *, softcap
):
    """A block of queries sees a block of keys."""
    bounded = softcap is not None and softcap <= HARMLESS

    @pl.when(pl.program_id(4) == 0)
    def start():
        acc[...] = jnp.zeros_like(acc)
        total[...] = jnp.zeros_like(total)
        highest[...] = jnp.full_like(highest, 0 if bounded else NOTHING)

    queries = q[0, 0, 0].astype(k.dtype)
    for rows in chunks(k.shape[2], whole=not bounded):
        seen = sees(q_segments, k_segments, rows)
        logits = capped(matmul(k[0, 0, rows], queries, 1, 0), q.shape[3], softcap)
        if not bounded:
            logits = jnp.where(seen, logits, NOTHING)
            higher = jnp.maximum(highest[...], logits.max(0, keepdims=True))
            fade = jnp.exp(highest[...] - higher)
            acc[...] *= fade
            total[...] *= fade
            highest[...] = higher
        weights = weights_of(logits, seen, 0.0 if bounded else highest[...])
        acc[...] += matmul(v[0, 0, :, rows], weights.astype(v.dtype), 1, 0)
        total[...] += weights.sum(0, keepdims=True)

    @pl.when(pl.program_id(4) == pl.num_programs(4) - 1)
    def end():
        some = jnp.maximum(total[...], 1e-30)
        out[0, 0, 0] = (acc[...] / some).astype(out.dtype)
        log_total[0, 0, 0] = highest[...] + jnp.log(some)


def backward_kernel(
    q_segments, k_segments, q, k, k_channels, v, d_out, inner, log_total, d_q, d_k, d_v, *, softcap
):
    """A block of keys is seen by a block of queries."""

    @pl.when((pl.program_id(3) == 0) & (pl.program_id(4) == 0))
    def start():
        d_k[...] = jnp.zeros_like(d_k)
        d_v[...] = jnp.zeros_like(d_v)

    queries = q[0, 0, 0].astype(k.dtype)
    d_result = d_out[0, 0, 0].astype(v.dtype)
    total = jnp.zeros(queries.shape, jnp.float32)
    for rows in chunks(k.shape[2]):
        logits = capped(matmul(k[0, 0, rows], queries, 1, 0), q.shape[3], softcap)
        shares = weights_of(logits, sees(q_segments, k_segments, rows), log_total[0, 0, 0])
        d_v[0, 0, rows] += matmul(shares.astype(v.dtype), d_result, 1, 1)
        d_logits = shares * (matmul(v[0, 0, rows], d_result, 1, 0) - inner[0, 0, 0])
        d_logits = d_logits * q.shape[3] ** -0.5
        if softcap is not None:
            d_logits = d_logits * (1 - (logits / softcap) * (logits / softcap))
        d_logits = d_logits.astype(k.dtype)
        d_k[0, 0, rows] += matmul(d_logits, queries, 1, 1)
        total += matmul(k_channels[0, 0, :, rows], d_logits, 1, 0)
    d_q[0, 0, 0, 0] = total.astype(d_q.dtype)


def chunks(keys: int, whole: bool = False) -> list[slice]:
    """Ranges of a block's keys whose logits are held at once."""
    size = keys if whole or keys % CHUNK else CHUNK
    return [slice(start, start + size) for start in range(0, keys, size)]


def sees(q_segments, k_segments, rows):
    """Which queries (columns) see which keys (rows)."""
    return k_segments[0, rows] == q_segments[0]


def matmul(x, y, of_x: int, of_y: int):
    """x y, contracted over one axis of each, float32."""
    axes = (((of_x,), (of_y,)), ((), ()))
    return jax.lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)


def operands(x: Array) -> Array:
    """Keys or values in the type of the matmuls, to which a kernel brings the rest.

    Where that is wider they are still small, since heads share them.
    """
    return x.astype(jnp.float32) if device.kind() == "TPU v3" else x


def _segments(q_segments, k_segments, sizes: Sizes) -> tuple[Array, Array]:
    """Segments of queries as a row and of keys as a column; padding meets none."""
    k_segments = sizes.of_keys(jnp.where(k_segments < 0, -2, k_segments), 1, -2)
    return sizes.of_queries(q_segments, -1)[:, None], k_segments[:, :, None]


def named(part: str, softcap: float | None, keys: int) -> str:
    """What the kernel is called where plans look for it: its speed depends on the cap and block."""
    return f"flash_{part}{'' if softcap is None else '_capped'}_{keys}"


def cost(matmuls: int, heads: int, sizes: Sizes, h: int) -> pl.CostEstimate:
    """What the kernel does for that many heads of all rows, for the estimates of plans."""
    queries, keys = sizes.queries * sizes.query_blocks, sizes.keys * sizes.key_blocks
    return pl.CostEstimate(
        flops=2 * matmuls * heads * queries * keys * h,
        transcendentals=2 * heads * queries * keys,
        bytes_accessed=2 * matmuls * heads * queries * h,
    )


def _refusal(case: Case, kind: str) -> str | None:
    """Why it cannot serve a case on that kind of device, or None."""
    suits = kind.startswith("TPU") and kind != "TPU v2"
    return kernel_refusal(case, kind, suits, "a TPU v3 or later", widest=LANES)


# It is compiled for all of these by a test, and no TPU has run it yet: `auto` leaves it alone.
FLASH = Backend(flash, "our kernel for TPUs", _refusal, lambda kind: False)
