"""Tiles: analytic cases; the autoencoder's tests compare them with diffusers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import repeat

from onediff_jax.ops.tiles import tiled

TILE, OVERLAP = 16, 4
SIZES = [(16, 20), (40, 12), (48, 44)]


def in_tiles(function):
    return jax.jit(lambda x: tiled(function, x, TILE, OVERLAP))


def images(height, width):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.uniform(-1, 1, (2, height, width, 3)), jnp.float32)


def halved(x):
    return x[:, ::2, 1::2, :1]


def doubled(x):
    return repeat(x, "b h w c -> b (h 2) (w 2) (c 2)")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("function", [jnp.square, halved, doubled])
def test_a_function_of_each_pixel_does_not_see_the_tiles(function, size):
    x = images(*size)
    found, expected = in_tiles(function)(x), function(x)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("axis", [1, 2])
def test_seams_are_linear_over_the_overlap(axis):
    shape = np.array([1, 1, 1, 1])
    shape[axis] = 40  # tiles of 16, 16, 16 and 4
    columns = jnp.arange(40.0).reshape(shape)
    found = in_tiles(lambda x: jnp.full_like(x, x.ravel()[0]))(columns).ravel()
    ramp = np.arange(4) / 4 * 12  # from the start of a tile to the start of the next
    steps = [np.full(12, 0), ramp, np.full(8, 12), 12 + ramp, np.full(8, 24), 24 + ramp]
    np.testing.assert_allclose(found, np.concatenate(steps), atol=1e-5)


def test_no_more_than_a_tile_is_looked_at_and_each_shape_is_compiled_once():
    seen = []

    def function(x):
        seen.append(x.shape[1:3])
        return x

    in_tiles(function)(images(48, 44))
    # Rows start at 0, 12, 24 and 36: three of 16 and one of 12; columns: 16, 16, 16 and 8.
    assert sorted(seen) == [(12, 8), (12, 16), (16, 8), (16, 16)]
