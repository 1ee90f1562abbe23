"""The text encoder against a plain float64 implementation of T5 v1.1's, and transformers'."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import witnesses
from drawn import drawn_params, drawn_tensors, relative_error

from onediff_jax.models.t5 import T5Encoder, bucket_of_distance
from onediff_jax.release.mapping import from_released, released_shapes
from onediff_jax.release.names import T5_NAMES

CONFIG, VOCABULARY, LENGTH = witnesses.TEXT, witnesses.VOCABULARY, 40
MODEL = T5Encoder(CONFIG, VOCABULARY)
RNG = np.random.default_rng(0)
IDS = jnp.asarray(RNG.integers(0, VOCABULARY, (2, 3, LENGTH)), jnp.int32)
MASK = jnp.asarray(np.arange(LENGTH) < RNG.integers(5, LENGTH, (2, 3, 1)))
PARAMS = drawn_params(
    nn.meta.unbox(jax.eval_shape(lambda: MODEL.init(jax.random.key(0), IDS, MASK)))["params"]
)


def encode(ids=IDS, mask=MASK, config=CONFIG, params=PARAMS):
    return jax.jit(T5Encoder(config, VOCABULARY).apply)({"params": params}, ids, mask)


def literal_bucket(distance: int) -> int:
    """Mesh TensorFlow's bidirectional bucket of a key's position minus its query's."""
    bucket = 16 if distance > 0 else 0
    distance = abs(distance)
    if distance < 8:
        return bucket + distance
    return bucket + min(15, 8 + int(np.log(distance / 8) / np.log(128 / 8) * 8))


def literal(ids, mask):
    """States of one prompt, in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), PARAMS)

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * scale

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    n = len(ids)
    bias = np.array(
        [[p["relative_bias"][literal_bucket(m - q)] for m in range(n)] for q in range(n)]
    )
    x = p["embedding"][ids]
    for i in range(CONFIG.depth):
        layer = jax.tree.map(lambda w, i=i: w[i], p["layers"])
        y = norm(x, layer["attention_norm"]["scale"])
        q, k, v = (
            (y @ layer[name]["kernel"]).reshape(n, CONFIG.heads, CONFIG.head_width)
            for name in "qkv"
        )
        out = np.zeros_like(q)
        for head in range(CONFIG.heads):
            scores = q[:, head] @ k[:, head].T + bias[:, :, head]
            weights = np.exp(scores - scores.max(-1, keepdims=True)) * mask
            out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, head]
        x = x + out.reshape(n, -1) @ layer["o"]["kernel"]
        y = norm(x, layer["mlp_norm"]["scale"])
        hidden = gelu(y @ layer["wi_0"]["kernel"]) * (y @ layer["wi_1"]["kernel"])
        x = x + hidden @ layer["wo"]["kernel"]
    return norm(x, p["final_norm"]["scale"])


def test_states_are_those_of_a_plain_implementation():
    found = np.asarray(encode())
    for i in range(2):
        for j in range(3):
            valid = np.asarray(MASK[i, j])
            expected = literal(np.asarray(IDS[i, j]), valid)
            assert relative_error(found[i, j][valid], expected[valid]) < 1e-5


def test_buckets_are_exact_when_near_and_logarithmic_when_far():
    found = bucket_of_distance(300, 32, 128)
    expected = [[literal_bucket(m - q) for m in range(300)] for q in range(300)]
    assert np.array_equal(found, expected)
    assert set(found.ravel()) == set(range(32)) - {16}


def test_states_are_those_of_transformers():
    """Masked tokens included: they see what the others see."""
    ids, mask = map(jnp.asarray, witnesses.prompts())
    names = released_shapes(PARAMS, T5_NAMES)
    params = from_released(drawn_tensors(names), T5_NAMES, PARAMS)
    found = encode(ids, mask, params=params)
    assert relative_error(found, np.load(witnesses.FILE)["t5/states"]) < 1e-5


def test_states_beyond_the_range_of_float16_stay_near_in_bfloat16():
    """Released T5s overflow float16: their feed-forward layers make sums beyond 65,504."""
    layers = dict(PARAMS["layers"], wo={"kernel": 1e6 * PARAMS["layers"]["wo"]["kernel"]})
    params = dict(PARAMS, layers=layers)
    exact = encode(params=params)
    found = encode(config=dataclasses.replace(CONFIG, dtype="bfloat16"), params=params)
    assert np.isfinite(exact).all() and relative_error(found, exact) < 3e-2


def test_masked_tokens_change_nothing():
    changed = jnp.where(MASK, IDS, (IDS + 1) % VOCABULARY)
    found, expected = encode(changed), encode()
    assert np.array_equal(
        np.asarray(found)[np.asarray(MASK)], np.asarray(expected)[np.asarray(MASK)]
    )
    moved = encode(IDS.at[..., 0].set((IDS[..., 0] + 1) % VOCABULARY))
    assert relative_error(moved[..., 1, :], expected[..., 1, :]) > 1e-3


def test_half_precision_stays_near_and_its_islands_stay_float32():
    half = dataclasses.replace(CONFIG, dtype="bfloat16")
    found = encode(config=half)
    assert found.dtype == jnp.bfloat16
    assert relative_error(found, encode()) < 3e-2
    jaxpr = str(
        jax.make_jaxpr(lambda: T5Encoder(half, VOCABULARY).apply({"params": PARAMS}, IDS, MASK))()
    )
    for line in jaxpr.splitlines():
        if any(f" = {name}" in line for name in ("exp", "rsqrt", "reduce_max", "log")):
            assert "bf16" not in line, line
