"""cuDNN's attention, on GPUs where no soft cap is asked: text attention."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from onediff_jax.errors import InputError
from onediff_jax.ops.attention_reference import visible


def cudnn(
    q: Float[Array, "b n g r h"],
    k: Float[Array, "b m g h"],
    v: Float[Array, "b m g h"],
    q_segments: Int[Array, "b n"],
    k_segments: Int[Array, "b m"],
    softcap: float | None,
) -> Float[Array, "b n g r h"]:
    """Attention of grouped queries, in the type of `q`.

    Raises InputError where a cap is asked or numbers are float32: cuDNN has neither.
    """
    if softcap is not None:
        raise InputError(
            f"Attention by 'cudnn' has no cap, and {softcap} is asked; use 'triton', or no cap."
        )
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        raise InputError(
            f"model.dtype is {q.dtype}, and attention by 'cudnn' needs bfloat16; use 'triton'."
        )
    seen = visible(q_segments, k_segments)[:, :, 0]
    heads = (*q.shape[:2], -1, q.shape[-1])
    out = jax.nn.dot_product_attention(q.reshape(heads), k, v, mask=seen, implementation="cudnn")
    # A query that sees nothing would average all values.
    return jnp.where(seen.any(-1)[:, 0, :, None, None, None], out.reshape(q.shape), 0)
