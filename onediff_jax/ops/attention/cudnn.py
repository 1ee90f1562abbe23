"""cuDNN's attention, on GPUs where no soft cap is asked for: attention over prompts."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from onediff_jax.ops.attention.backend import Backend, Case, dtype_name
from onediff_jax.ops.attention.reference import visible


def cudnn(
    q: Float[Array, "b n g r h"],
    k: Float[Array, "b m g h"],
    v: Float[Array, "b m g h"],
    q_segments: Int[Array, "b n"],
    k_segments: Int[Array, "b m"],
    softcap: float | None,
) -> Float[Array, "b n g r h"]:
    """Attention of grouped queries, in the type of `q`, of cases that `refusal` lets pass."""
    del softcap
    seen = visible(q_segments, k_segments)[:, :, 0]
    heads = (*q.shape[:2], -1, q.shape[-1])
    out = jax.nn.dot_product_attention(q.reshape(heads), k, v, mask=seen, implementation="cudnn")
    # A query that sees nothing would average all values.
    return jnp.where(seen.any(-1)[:, 0, :, None, None, None], out.reshape(q.shape), 0)


def _refusal(case: Case, kind: str) -> str | None:
    """Why cuDNN cannot serve a case on that kind of device, or None.

    As `check_is_flash_attention` of jax/_src/cudnn says, for the oldest supported GPUs; a mask is
    given to cuDNN as a bias, which its gradient takes for even numbers of tokens only.
    """
    if not kind.startswith("NVIDIA"):
        return f"it needs an NVIDIA GPU, and this is {kind}"
    if case.softcap is not None:
        return f"it has no cap, and model.softcap is {case.softcap}"
    if dtype_name(case.dtype) not in ("bfloat16", "float16"):
        return f"it needs bfloat16, and this is {dtype_name(case.dtype)}"
    if case.head > 128 or case.head % 8:
        return f"its heads have at most 128 channels, a multiple of 8, and these have {case.head}"
    if case.queries % 2 or case.keys % 2:
        return f"it needs even numbers of tokens, and here {case.queries} read {case.keys}"
    return None


# No GPU has run it yet: `auto` leaves it alone until `TEST_PLATFORM=cuda pytest -m gpu` has passed.
CUDNN = Backend(cudnn, "cuDNN", _refusal, lambda kind: False)
