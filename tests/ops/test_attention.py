import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import (
    BLIND,
    CASES,
    K_SEGMENTS,
    Q_SEGMENTS,
    SEES,
    UNSEEN,
    B,
    G,
    H,
    K,
    M,
    N,
    drawn,
    in_both_types,
    value_and_cotangents,
)
from drawn import relative_error
from numpy.testing import assert_allclose, assert_array_equal

from onediff_jax.errors import InputError
from onediff_jax.ops import attention
from onediff_jax.ops.attention import chunked as attention_chunked
from onediff_jax.ops.attention import reference as attention_reference

PLAIN = pytest.mark.parametrize("backend", ["reference", "chunked"])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of queries, of which the last is not full."""
    monkeypatch.setattr(attention_chunked, "_BLOCK", 5)
    monkeypatch.setattr(attention_chunked, "_KEYS", 1)


def plain_attention(q, k, v, sees, softcap, tiled=False):
    """Softmax over the visible keys, query by query, in float64, with keys repeated for heads."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    if tiled:
        k, v = (np.tile(x, (1, 1, K // G, 1)) for x in (k, v))
    else:
        k, v = (np.repeat(x, K // G, axis=2) for x in (k, v))
    out = np.zeros(q.shape)
    for b, n, head in itertools.product(*map(range, q.shape[:3])):
        seen = sees[b, n]
        if seen.any():
            logits = k[b, seen, head] @ q[b, n, head] / np.sqrt(H)
            if softcap is not None:
                logits = softcap * np.tanh(logits / softcap)
            weights = np.exp(logits - logits.max())
            out[b, n, head] = weights / weights.sum() @ v[b, seen, head]
    return out


@CASES
def test_the_reference_is_plain_softmax_with_repeated_keys(softcap, tiled):
    q, k, v, d_out = drawn()
    settings = dict(softcap=softcap, tiled=tiled)
    found = value_and_cotangents(q, k, v, d_out, **settings, backend="reference")[0]
    assert relative_error(found, plain_attention(q, k, v, SEES, **settings)) < 5e-6


@CASES
def test_chunked_is_the_reference_in_values_and_gradients(softcap, tiled):
    settings = dict(softcap=softcap, tiled=tiled)
    expected = value_and_cotangents(*drawn(), **settings, backend="reference")
    found = value_and_cotangents(*drawn(), **settings, backend="chunked")
    for ours, truth in zip(found, expected, strict=True):
        assert np.linalg.norm(truth) > 0.1
        assert relative_error(ours, truth) < 5e-6


@pytest.mark.parametrize("block", [1, 4, 512])
def test_chunked_is_the_reference_whatever_the_block(block, monkeypatch):
    expected = value_and_cotangents(*drawn(), backend="reference")
    monkeypatch.setattr(attention_chunked, "_BLOCK", block)
    found = value_and_cotangents(*drawn(), backend="chunked")
    for ours, truth in zip(found, expected, strict=True):
        assert relative_error(ours, truth) < 5e-6


@PLAIN
def test_bfloat16_stays_near_float32_in_values_and_gradients(backend):
    for ours, truth in zip(*in_both_types(drawn(), backend), strict=True):
        assert ours.dtype == jnp.bfloat16
        assert relative_error(ours, truth) < 8e-3


@PLAIN
def test_logits_stay_float32_where_inputs_are_bfloat16(backend):
    q, k, v, d_out = drawn(sharpness=0.5)
    # High logits that differ little: around 25 bfloat16 numbers are 0.125 apart.
    found, exact = in_both_types((3 + q, 3 + 0.5 * k, v, d_out), backend)
    assert relative_error(found[0], exact[0]) < 4e-3


@PLAIN
def test_gradients_are_the_limits_of_differences(backend):
    *inputs, d_out = drawn(sharpness=2.0)
    cotangents = value_and_cotangents(*inputs, d_out, backend=backend)[1:]
    for i, (cotangent, direction) in enumerate(zip(cotangents, drawn(1, 1.0), strict=False)):
        ends = []
        for side in (1, -1):
            moved = list(inputs)
            moved[i] = inputs[i] + side * 0.01 * direction
            ends.append(value_and_cotangents(*moved, d_out, backend=backend)[0])
        slope = np.vdot(d_out, ends[0] - ends[1]) / 0.02
        tolerance = 1e-3 * np.linalg.norm(cotangent)
        assert_allclose(np.vdot(cotangent, direction), slope, atol=tolerance)


@PLAIN
def test_keys_that_nobody_sees_have_no_weight_and_no_gradient(backend):
    q, k, v, d_out = drawn()
    expected = value_and_cotangents(q, k, v, d_out, backend=backend)
    for x in (k, v):
        x[UNSEEN] *= 1e4
    found = value_and_cotangents(q, k, v, d_out, backend=backend)
    for ours, truth in zip(found, expected, strict=True):
        assert_array_equal(ours, truth)
    for d in found[2:]:
        assert_array_equal(d[UNSEEN], 0)
        assert (d[~UNSEEN] != 0).all()


@PLAIN
def test_a_query_that_sees_no_key_gets_zeros_and_moves_nothing(backend):
    q, k, v, d_out = drawn()
    d_out[BLIND] = 1e3
    out, *loud = value_and_cotangents(q, k, v, d_out, backend=backend)
    d_out[BLIND] = 0
    _, *silent = value_and_cotangents(q, k, v, d_out, backend=backend)
    assert_array_equal(out[BLIND], 0)
    assert_array_equal(loud[0][BLIND], 0)
    assert (out[~BLIND] != 0).all()
    for one, other in zip(loud, silent, strict=True):
        assert np.isfinite(one).all()
        assert_array_equal(one, other)


@PLAIN
def test_no_key_at_all_gives_zeros_and_finite_gradients(backend):
    nobody = np.full_like(K_SEGMENTS, -1)
    for array in value_and_cotangents(*drawn(), k_segments=nobody, backend=backend):
        assert_array_equal(array, 0)


@PLAIN
def test_segments_of_one_row_are_rows_of_their_own(backend):
    q, k, v, d_out = drawn()
    segments = np.repeat([[0, 1]] * B, [3, 4], axis=1), np.repeat([[0, 1]] * B, [7, 5], axis=1)
    together = value_and_cotangents(q, k, v, d_out, *segments, backend=backend)[0]
    for queries, keys in [(slice(0, 3), slice(0, 7)), (slice(3, 7), slice(7, 12))]:
        q_part, k_part, v_part = q[:, queries], k[:, keys], v[:, keys]
        sees = np.ones((B, q_part.shape[1], k_part.shape[1]), bool)
        alone = plain_attention(q_part, k_part, v_part, sees, softcap=30.0)
        assert relative_error(together[:, queries], alone) < 5e-6


@PLAIN
@pytest.mark.parametrize("softcap", [None, 500.0])
def test_logits_of_hundreds_and_thousands_stay_finite(backend, softcap):
    q, k, v, d_out = drawn(sharpness=4000.0)
    found = value_and_cotangents(q, k, v, d_out, softcap=softcap, backend=backend)
    assert all(np.isfinite(array).all() for array in found)
    expected = plain_attention(q, k, v, SEES, softcap=softcap)
    assert relative_error(found[0], expected) < 1e-3


def test_an_unknown_backend_is_refused_with_the_ones_there_are():
    arrays = map(jnp.asarray, (*drawn()[:3], Q_SEGMENTS, K_SEGMENTS))
    with pytest.raises(InputError, match="'flash', .* TPU v3 or later.* auto or chunked"):
        attention.attend(*arrays, backend="flash")


def shapes_in(jaxpr):
    """Shape of everything that a program computes, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars)
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from shapes_in(inner)


def shapes_of_gradient(backend, n, m, h):
    """Shapes of all intermediates of attention and its gradient."""

    def run(q, k, v):
        segments = jnp.zeros((B, n), jnp.int32), jnp.zeros((B, m), jnp.int32)
        return attention.attend(q, k, v, *segments, softcap=30.0, backend=backend).sum()

    q, k = (jax.ShapeDtypeStruct((B, *size, h), jnp.float32) for size in ((n, K), (m, G)))
    return set(shapes_in(jax.make_jaxpr(jax.grad(run, (0, 1, 2)))(q, k, k).jaxpr))


@pytest.mark.parametrize(("keys", "queries"), [(37, 8), (74, 16)])
def test_chunked_never_holds_the_scores_of_all_keys(keys, queries, monkeypatch):
    monkeypatch.setattr(attention_chunked, "_BLOCK", 8)
    monkeypatch.setattr(attention_chunked, "_KEYS", keys)
    n, m, h = 23, 37, 4
    largest = {
        backend: max(map(math.prod, shapes_of_gradient(backend, n, m, h)))
        for backend in ("reference", "chunked")
    }
    assert largest["reference"] == B * K * n * m
    assert largest["chunked"] == B * K * queries * m


def equations(jaxpr, primitive):
    """How often a program computes a primitive, inner programs included."""
    own = sum(equation.primitive.name == primitive for equation in jaxpr.eqns)
    inner = [i for equation in jaxpr.eqns for i in jax.core.jaxprs_in_params(equation.params)]
    return own + sum(equations(i, primitive) for i in inner)


def test_a_rematerialised_block_that_keeps_what_is_named_does_not_attend_twice():
    def run(q, k, v):
        segments = jnp.zeros((B, N), jnp.int32), jnp.zeros((B, M), jnp.int32)
        return attention.attend(2 * q, k, v, *segments, softcap=30.0).sum()

    def products(run):
        gradient = jax.grad(lambda *x: jnp.sin(run(*x)), (0, 1, 2))
        return equations(jax.make_jaxpr(gradient)(*drawn()[:3]).jaxpr, "dot_general")

    keep = jax.checkpoint_policies.save_only_these_names(
        attention_reference.ATTENDED, attention_reference.LOG_TOTAL
    )
    assert products(jax.checkpoint(run, policy=keep)) == products(run)
    assert products(jax.checkpoint(run)) > products(run)


@PLAIN
def test_keys_of_grouped_heads_are_never_repeated(backend, monkeypatch):
    monkeypatch.setattr(attention_chunked, "_BLOCK", 37)
    n, m, h = 23, 37, 5
    with_keys = [s for s in shapes_of_gradient(backend, n, m, h) if m in s and h in s]
    assert max(map(math.prod, with_keys)) == B * m * G * h
