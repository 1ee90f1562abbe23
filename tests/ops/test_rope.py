import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from onediff_jax.errors import InputError
from onediff_jax.ops import rope

WIDTH = 24
AXES = ["view", "row", "column"]


def heads(seed, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((2, 5, 3, WIDTH)), dtype)


def places(seed, most=30):
    return jnp.asarray(np.random.default_rng(seed).integers(0, most, (2, 5, 3)))


def rotate(x, turn):
    """Tokens first, as these tests have them."""
    last = [jnp.moveaxis(jnp.asarray(y), 1, -1) for y in (x, turn)]
    return jnp.moveaxis(rope.rotate(*last), -1, 1)


@jax.jit
def scores(q, k, q_positions, k_positions):
    q = rotate(q, rope.angles(q_positions, WIDTH))
    k = rotate(k, rope.angles(k_positions, WIDTH))
    return jnp.einsum("bnhd,bmhd->bhnm", q, k)


@pytest.mark.parametrize("axis", range(3), ids=AXES)
def test_scores_depend_on_offsets_only(axis):
    q, k, positions = heads(0), heads(1), places(2)
    offset = 7 * np.eye(3, dtype=np.int32)[axis]
    at_home = scores(q, k, positions, positions)
    assert_allclose(scores(q, k, positions + offset, positions + offset), at_home, atol=1e-4)
    away = scores(q, k, positions + offset, positions)
    assert np.abs(np.subtract(away, at_home)).max() > 0.5


def test_angles_are_positions_times_the_frequencies_of_their_axis():
    positions = places(0, most=1000)
    found = rope.angles(positions, WIDTH)
    pairs = WIDTH // 6
    expected = np.zeros((*positions.shape[:-1], 3 * pairs))
    for axis, j in itertools.product(range(3), range(pairs)):
        expected[..., axis * pairs + j] = positions[..., axis] * 10_000.0 ** (-j / pairs)
    assert found.dtype == jnp.float32
    assert_allclose(found, expected, rtol=1e-6)


def test_position_zero_turns_nothing():
    x = heads(0)
    turn = rope.angles(jnp.zeros((2, 5, 3), jnp.int32), WIDTH)
    assert_array_equal(turn, jnp.zeros_like(turn))
    assert_array_equal(rotate(x, turn), x)


def test_rotation_keeps_norms_of_channels_and_turns_compose():
    x = heads(0)
    one, other = rope.angles(places(1), WIDTH), rope.angles(places(2), WIDTH)
    lengths = lambda x: np.hypot(*np.split(np.asarray(x), 2, axis=-1))  # noqa: E731
    assert_allclose(lengths(rotate(x, one)), lengths(x), rtol=1e-5, atol=1e-6)
    twice = rotate(rotate(x, one), other)
    assert_allclose(twice, rotate(x, one + other), atol=1e-5)
    assert_allclose(rotate(rotate(x, one), -one), x, atol=1e-5)


def test_rotation_is_computed_in_float32_and_returned_in_the_type_of_its_input():
    x, turn = heads(0, jnp.bfloat16), rope.angles(places(1), WIDTH)
    found = rotate(x, turn)
    assert found.dtype == jnp.bfloat16
    assert_array_equal(found, rotate(x.astype(jnp.float32), turn).astype(jnp.bfloat16))


@pytest.mark.parametrize("axis", range(3), ids=AXES)
def test_far_neighbours_stay_one_apart(axis):
    step = np.eye(3, dtype=np.int32)[axis]
    positions = jnp.asarray([0 * step, step, 256 * step, 257 * step])
    near, far = np.split(np.asarray(rope.angles(positions, WIDTH)), 2)
    # As bfloat16 257 would be 256.
    assert_allclose(far[1] - far[0], near[1] - near[0], atol=5e-5)
    assert far[1].max() - far[0].max() == 1


def test_the_two_orders_of_channels_are_inverse():
    ours, released = rope.halves_from_pairs(WIDTH), rope.pairs_from_halves(WIDTH)
    assert_array_equal(ours[released], np.arange(WIDTH))
    assert_array_equal(released[ours], np.arange(WIDTH))
    assert_array_equal(rope.halves_from_pairs(6), [0, 2, 4, 1, 3, 5])
    assert_array_equal(rope.pairs_from_halves(6), [0, 3, 1, 4, 2, 5])


def test_rotating_neighbouring_pairs_is_rotating_halves_of_permuted_channels():
    released, turn = heads(0), rope.angles(places(1), WIDTH)
    pairs = np.asarray(released, np.float64).reshape(2, 5, 3, WIDTH // 2, 2)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * np.asarray(turn))[:, :, None]
    expected = np.stack([turned.real, turned.imag], -1).reshape(released.shape)
    ours = rotate(released[..., rope.halves_from_pairs(WIDTH)], turn)
    assert_allclose(ours[..., rope.pairs_from_halves(WIDTH)], expected, atol=1e-5)


def test_a_scale_factor_interpolates_positions_or_stretches_theta():
    positions = places(0)
    plain = rope.angles(positions, WIDTH)
    assert_allclose(rope.angles(4 * positions, WIDTH, 4.0, True), plain, rtol=1e-6)
    squeezed = rope.angles(positions, WIDTH, 4.0, jnp.array(True))
    assert_allclose(squeezed, plain / 4, rtol=1e-6)
    stretched = np.asarray(rope.angles(positions, WIDTH, 4.0)).reshape(2, 5, 3, -1)
    expected = np.asarray(positions)[..., None] * 40_000.0 ** -(np.arange(4) / 4)
    assert_allclose(stretched, expected, rtol=1e-6)  # the fastest channel turns as before
    for interpolates in (False, True):
        assert_array_equal(rope.angles(positions, WIDTH, 1.0, interpolates), plain)


@pytest.mark.parametrize("width", [8, 16, 64, 128])
def test_a_head_that_three_axes_cannot_share_is_refused(width):
    with pytest.raises(InputError, match=f"divisible by 6, got {width}"):
        rope.angles(places(0), width)
