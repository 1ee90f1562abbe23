import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from onediff_jax.errors import InputError
from onediff_jax.ops.patches import patchify, unpatchify


def latents(height=6, width=12, channels=3, batch=(2,)):
    """Every number different, so that none can trade places unseen."""
    shape = (*batch, height, width, channels)
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_patches_run_by_rows_then_columns_with_the_channel_fastest(size):
    image = latents()
    rows, columns, channels = 6 // size, 12 // size, 3
    found = patchify(image, size)
    assert found.shape == (2, rows * columns, size * size * channels)
    for row, column in itertools.product(range(rows), range(columns)):
        for i, j, c in itertools.product(range(size), range(size), range(channels)):
            expected = image[:, row * size + i, column * size + j, c]
            feature = (i * size + j) * channels + c
            assert_array_equal(found[:, row * columns + column, feature], expected)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(6, 12), (12, 6), (6, 6)])
def test_unpatchify_undoes_patchify(height, width, size, batch):
    image = latents(height, width, batch=batch)
    patches = patchify(image, size)
    assert_array_equal(unpatchify(patches, height // size, size), image)
    assert_array_equal(patchify(unpatchify(patches, height // size, size), size), patches)


def test_patches_are_two_by_two_where_nothing_is_said():
    assert patchify(latents()).shape == (2, 18, 12)
    assert_array_equal(unpatchify(patchify(latents(), 2), 3), latents())


def test_numpy_and_jax_make_the_same_patches_each_in_its_own_type():
    image = latents()
    found, expected = patchify(jnp.asarray(image)), patchify(image)
    assert isinstance(found, jnp.ndarray) and isinstance(expected, np.ndarray)
    assert_array_equal(found, expected)
    found, expected = unpatchify(found, 3), unpatchify(expected, 3)
    assert isinstance(found, jnp.ndarray) and isinstance(expected, np.ndarray)
    assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(5, 6, 2), (6, 5, 2), (7, 7, 2), (6, 8, 3), (8, 6, 3)]
)
def test_sizes_that_do_not_divide_are_refused(height, width, size):
    with pytest.raises(InputError, match=f"{height} x {width} do not cut .* {size} x {size}"):
        patchify(latents(height, width), size)
