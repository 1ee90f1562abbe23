"""Queries, keys, values and segments that hold every trap, and what a backend makes of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onediff_jax.ops import attention, device
from onediff_jax.ops.attention import chunked as attention_chunked

B, N, M, K, G, H = 2, 7, 12, 6, 2, 8  # rows, queries, keys, query heads, key heads, head width
# Queries of segment 4 and -1 see no key; keys of segment 7 and -1 are seen by no query.
Q_SEGMENTS = np.array([[0, 0, 0, 1, 1, 4, -1], [2, 0, 2, 0, 0, 2, 0]])
K_SEGMENTS = np.array(
    [[0, 0, -1, 0, 0, 1, 1, 1, 1, 7, -1, 1], [0, 2, 0, 2, 0, 2, 0, 2, 0, -1, 2, 2]]
)
SEES = (Q_SEGMENTS[:, :, None] == K_SEGMENTS[:, None]) & (K_SEGMENTS >= 0)[:, None]
BLIND = ~SEES.any(2)  # queries
UNSEEN = ~SEES.any(1)  # keys
CASES = pytest.mark.parametrize(
    ("softcap", "tiled"),
    [(None, False), (30.0, False), (2.0, False), (500.0, False), (None, True), (30.0, True)],
)
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling costs more than running


def drawn(seed=0, sharpness=12.0, n=N, m=M, h=H):
    """Queries, keys and values with logits of order `sharpness`, and a cotangent."""
    rng = np.random.default_rng(seed)
    shapes = (B, n, K, h), (B, m, G, h), (B, m, G, h), (B, n, K, h)
    q, k, v, d_out = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return sharpness * q, k, v, d_out


@functools.cache
def compiled(block, kind, **settings):
    """A program of attention and its gradient.

    `block` is that of the chunked backend, `kind` the device's: either makes another program.
    """
    assert (block, kind) == (attention_chunked._BLOCK, device.kind())

    def run(q, k, v, d_out, q_segments, k_segments):
        attend = functools.partial(
            attention.attend, q_segments=q_segments, k_segments=k_segments, **settings
        )
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(d_out)

    return jax.jit(run, compiler_options=QUICKLY)


def value_and_cotangents(
    q,
    k,
    v,
    d_out,
    q_segments=Q_SEGMENTS,
    k_segments=K_SEGMENTS,
    *,
    softcap=30.0,
    tiled=False,
    backend,
):
    """What attention gives, and what q, k and v get back for `d_out`."""
    settings = dict(softcap=softcap, tiled=tiled, backend=backend)
    run = compiled(attention_chunked._BLOCK, device.kind(), **settings)
    return jax.device_get(run(q, k, v, d_out, q_segments, k_segments))


def in_both_types(arrays, backend, **settings):
    """Results of bfloat16 arrays, and of the reference in float32 for the same numbers."""
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    exact = [x.astype(np.float32) for x in arrays]
    return (
        value_and_cotangents(*arrays, backend=backend, **settings),
        value_and_cotangents(*exact, backend="reference", **settings),
    )
