"""JAX's splash attention for TPU v4 and later, with segments, soft cap and heads of any width.

Heads are padded to 128 channels and tokens to blocks in here alone.  Splash has no notion of a
query that sees nothing (it would average all values), so those are cut out around it; and it takes
queries that are scaled already, rounded to their type.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

from onediff_jax.ops.attention.backend import LANES, Backend, Case, kernel_refusal
from onediff_jax.ops.attention.reference import ATTENDED, visible

_BLOCK = 512  # queries, and keys, of a block
_INTERPRET = False  # tests run the kernel without a TPU


def splash(
    q: Float[Array, "b n g r h"],
    k: Float[Array, "b m g h"],
    v: Float[Array, "b m g h"],
    q_segments: Int[Array, "b n"],
    k_segments: Int[Array, "b m"],
    softcap: float | None,
) -> Float[Array, "b n g r h"]:
    """Attention of grouped queries, in the type of `q`."""
    b, n, g, r, h = q.shape
    q_block, k_block = block_of(n), block_of(k.shape[1])
    scaled = (q.astype(jnp.float32) * h**-0.5).astype(q.dtype).reshape(b, n, g * r, h)
    tokens = -n % q_block, -k.shape[1] % k_block
    q_padded = _padded(scaled, tokens[0])
    k_padded, v_padded = _padded(k, tokens[1]), _padded(v, tokens[1])
    # Queries of segment -1 must not find keys of segment -1.
    k_segments = jnp.where(k_segments < 0, -2, k_segments)
    segments = splash_kernel.SegmentIds(
        jnp.pad(q_segments, ((0, 0), (0, tokens[0])), constant_values=-1),
        jnp.pad(k_segments, ((0, 0), (0, tokens[1])), constant_values=-2),
    )
    everything = masks.FullMask((q_padded.shape[2], k_padded.shape[2]))
    attend = splash_kernel.make_splash_mha(
        masks.MultiHeadMask([everything] * (g * r)),
        block_sizes=splash_kernel.BlockSizes(
            block_q=q_block,
            block_kv=k_block,
            block_q_dkv=q_block,
            block_kv_dkv=k_block,
            block_q_dq=q_block,
            block_kv_dq=k_block,
        ),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name=ATTENDED,
        interpret=_INTERPRET,
    )
    out = jax.vmap(attend)(q_padded, k_padded, v_padded, segments)
    out = jnp.moveaxis(out[:, :, :n, :h], 1, 2).reshape(q.shape)
    sees = visible(q_segments, k_segments).any(-1)[:, 0, 0, :, None, None, None]
    return jnp.where(sees, out, 0)


def block_of(tokens: int) -> int:
    """Tokens of a block: BLOCK, or what a shorter sequence has, in whole registers."""
    return min(_BLOCK, -(-tokens // LANES) * LANES)


def _padded(x: Float[Array, "b n k h"], tokens: int) -> Float[Array, "b k m w"]:
    """Heads first, with so many more tokens and with channels up to a whole register."""
    x = jnp.pad(x, ((0, 0), (0, tokens), (0, 0), (0, -x.shape[-1] % LANES)))
    return jnp.moveaxis(x, 2, 1)


def _refusal(case: Case, kind: str) -> str | None:
    """Why it cannot serve a case on that kind of device, or None."""
    return kernel_refusal(case, kind, suits(kind), "a TPU v4 or later", widest=512)


def suits(kind: str) -> bool:
    """Whether the kernel is for devices of that kind."""
    return kind.startswith("TPU") and kind not in ("TPU v2", "TPU v3")


SPLASH = Backend(splash, "JAX's kernel for TPU v4 and later", _refusal, suits)
