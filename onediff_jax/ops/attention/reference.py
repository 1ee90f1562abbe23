"""All logits at once: what the other backends are tested against, and functions that they share.

Logits are float32: s = q.k / sqrt(h), with a soft cap cap tanh(s / cap).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from onediff_jax.ops.attention.backend import Backend, no_refusal

NOTHING = -1e30  # a masked logit: finite, so that the difference of two of them is a number
HARMLESS = 60.0  # exp of a logit up to here, summed over all keys, is a float32 number
# Names for rematerialisation: of the output, and of log(sum(exp(logits))).
ATTENDED, LOG_TOTAL = "attended", "log_total"


def einsum_f32(spec: str, x: Array, y: Array) -> Float[Array, "..."]:
    """`einsum` with a float32 result, whatever the operands are."""
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def capped(products: Array, width: int, softcap: float | None) -> Array:
    """Logits of the dot products of queries and keys, whose heads have `width` channels."""
    logits = products * width**-0.5
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def visible(
    q_segments: Int[Array, "b n"], k_segments: Int[Array, "b m"]
) -> Bool[Array, "b 1 1 n m"]:
    """Which keys every query sees."""
    same = q_segments[:, :, None] == k_segments[:, None, :]
    return (same & (k_segments >= 0)[:, None, :])[:, None, None]


def weights_of(logits: Array, seen: Array, highest: Array | float) -> Array:
    """exp(logits - highest) on visible keys, 0 elsewhere."""
    return jnp.where(seen, jnp.exp(logits - highest), 0)


def reference(
    q: Float[Array, "b n g r h"],
    k: Float[Array, "b m g h"],
    v: Float[Array, "b m g h"],
    q_segments: Int[Array, "b n"],
    k_segments: Int[Array, "b m"],
    softcap: float | None,
) -> Float[Array, "b n g r h"]:
    """Attention of grouped queries, float32."""
    seen = visible(q_segments, k_segments)
    logits = capped(einsum_f32("bngrh,bmgh->bgrnm", q, k), q.shape[-1], softcap)
    logits = jnp.where(seen, logits, NOTHING)
    weights = weights_of(logits, seen, jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    shares = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)
    return einsum_f32("bgrnm,bmgh->bngrh", shares.astype(v.dtype), v)


REFERENCE = Backend(reference, "all logits at once, for tests", no_refusal, lambda kind: False)
