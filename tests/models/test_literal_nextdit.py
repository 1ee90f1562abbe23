"""The witness itself: its count of the release, its conventions, its masks."""

import math

import numpy as np
import pytest
from literal_nextdit import (
    RELEASED,
    LiteralConfig,
    embed_time,
    forward,
    grid,
    patchify,
    random_weights,
    released_shapes,
    rotate,
    rotations,
    unpatchify,
)
from numpy.testing import assert_allclose, assert_array_equal

TINY = LiteralConfig(
    hidden_size=48, depth=2, num_heads=4, num_kv_heads=2, caption_channels=20, multiple_of=16
)


@pytest.fixture
def inputs():
    """Two elements of two views, with the last two text tokens of the first element masked."""
    rng = np.random.default_rng(0)
    text_mask = np.ones((2, 5), bool)
    text_mask[0, 3:] = False
    return {
        "weights": random_weights(TINY, rng),
        "config": TINY,
        "latents": rng.normal(size=(2, 2, 16, 4, 6)),
        "times": rng.uniform(1, 1000, size=(2, 2)),
        "text": rng.normal(size=(2, 5, 20)),
        "text_mask": text_mask,
    }


def test_released_tensors_are_counted_exactly():
    shapes = released_shapes(RELEASED)
    assert len(shapes) == 382
    assert sum(math.prod(shape) for shape in shapes.values()) == 2_800_389_184
    block = sum(math.prod(s) for name, s in shapes.items() if name.startswith("layers.7."))
    assert block == 174_533_920
    assert RELEASED.head_dim == 120
    assert RELEASED.ffn_size == 10240


def test_random_weights_have_no_zero(inputs):
    assert all(np.all(weight != 0) for weight in inputs["weights"].values())


def test_velocity_has_the_shape_of_the_latents_and_a_size_of_order_one(inputs):
    velocity = forward(**inputs)
    assert velocity.shape == inputs["latents"].shape
    assert velocity.dtype == np.float64
    assert 0.3 < velocity.std() < 3


def test_every_tensor_matters_but_the_bias_of_text_keys(inputs):
    """Unrotated, it adds the same to all text scores of a query, which softmax ignores."""
    velocity, rng = forward(**inputs), np.random.default_rng(1)
    for name, weight in inputs["weights"].items():
        changed = weight + 0.1 * rng.normal(size=weight.shape)
        weights = inputs["weights"] | {name: changed}
        difference = np.abs(forward(**inputs | {"weights": weights}) - velocity).max()
        assert (difference < 1e-12) if "ky_norm.bias" in name else (difference > 1e-3), name


def test_patches_are_rows_columns_channels_and_come_back():
    latents = np.random.default_rng(0).normal(size=(1, 2, 16, 4, 6))
    tokens = patchify(latents, 2)
    assert tokens.shape == (1, 12, 64)
    assert_array_equal(tokens[0, 6 + 3 + 1, 16 * 2 : 16 * 3], latents[0, 1, :, 3, 2])
    assert_array_equal(unpatchify(tokens, latents.shape, 2), latents)


def test_time_embedding_starts_with_cosines_of_the_unscaled_time():
    embedding = embed_time(np.array([[500.0]]), 256)[0, 0]
    assert_allclose(embedding[[0, 128]], [math.cos(500), math.sin(500)])
    assert_allclose(embedding[[64, 192]], [math.cos(5), math.sin(5)])


def test_rotary_scores_depend_on_offsets_only():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 12, 1, 24))
    positions = grid(2, 4, 6, 2)

    def scores(q_positions, k_positions):
        turned_q = rotate(q, rotations(q_positions, 24))[0, :, 0]
        return turned_q @ rotate(k, rotations(k_positions, 24))[0, :, 0].T

    here, shift = scores(positions, positions), np.array([7, 3, 11])
    assert_allclose(scores(positions + shift, positions + shift), here, atol=1e-10)
    for axis in np.eye(3):
        assert np.abs(scores(positions + axis, positions) - here).max() > 0.1


def test_rotary_pairs_are_adjacent_and_ordered_view_row_column():
    turns = rotations(np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]]), 12)  # two pairs an axis
    slow = np.exp(0.01j)
    expected = np.ones((3, 6), complex)
    for axis in range(3):
        expected[axis, 2 * axis : 2 * axis + 2] = np.exp(1j), slow
    assert_allclose(turns, expected)
    x = np.zeros((1, 3, 1, 12))
    x[..., 2] = 1
    assert_allclose(rotate(x, turns)[0, 0, 0, 2:4], [slow.real, slow.imag])


def test_unmasked_text_matters_and_masked_text_does_not(inputs):
    velocity = forward(**inputs)
    masked, unmasked = inputs["text"].copy(), inputs["text"].copy()
    masked[0, 3:] += 5
    unmasked[0, 2] += 5
    assert_array_equal(forward(**inputs | {"text": masked}), velocity)
    changed = np.abs(forward(**inputs | {"text": unmasked}) - velocity).max(axis=(1, 2, 3, 4))
    assert changed[0] > 1e-2
    assert changed[1] == 0


def test_views_see_each_other_and_elements_do_not(inputs):
    latents = inputs["latents"].copy()
    latents[0, 0] += 1
    changed = np.abs(forward(**inputs | {"latents": latents}) - forward(**inputs))
    assert (changed.max(axis=(2, 3, 4)) > 1e-3).tolist() == [[True, True], [False, False]]


def test_soft_cap_bounds_scores_and_vanishes_when_large(inputs):
    velocity = forward(**inputs)
    assert np.abs(forward(**inputs, softcap=1.0) - velocity).max() > 1e-3
    assert_allclose(forward(**inputs, softcap=1e6), velocity, atol=1e-9)


def test_rotary_scaling_switches_at_the_watershed(inputs):
    below = forward(**inputs, scale_factor=1.5, scale_watershed=1001)
    above = forward(**inputs, scale_factor=1.5)
    wider = LiteralConfig(**vars(TINY) | {"theta": 15000.0})
    assert_array_equal(above, forward(**inputs | {"config": wider}))
    assert np.abs(below - above).max() > 1e-3
    assert_array_equal(forward(**inputs, scale_watershed=1001), forward(**inputs))
