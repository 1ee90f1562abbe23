"""The frozen networks beside the libraries they come from: needs the `torch` extra."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import drawn_tensors, relative_error
from witnesses import (
    FILE,
    VOCABULARY,
    XL,
    autoencoded,
    encoded,
    filled,
    kept,
    prompts,
    released_t5,
    released_vae,
    shapes_of,
)

from onediff_jax.models.t5 import T5Encoder
from onediff_jax.models.vae import AutoencoderKL, VAEConfig
from onediff_jax.release.mapping import from_released
from onediff_jax.release.names import T5_NAMES, VAE_NAMES

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def _libraries():
    for library in ("torch", "diffusers", "transformers"):
        pytest.importorskip(library, reason="compares with it: pip install '.[torch]'")


def ours(init, names, tensors):
    shapes = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0)))
    return from_released(tensors, names, shapes)


def test_the_file_holds_what_the_libraries_make():
    expected, found = np.load(FILE), kept()
    assert set(found) == set(expected.files)
    for name, array in found.items():
        if name.endswith("shapes"):
            assert str(array) == str(expected[name])
        else:
            assert relative_error(array, expected[name]) < 1e-5, name


def test_the_autoencoder_at_its_released_shape_is_that_of_diffusers():
    config = VAEConfig(dtype="float32")
    vae, theirs = AutoencoderKL(config), released_vae(config)
    tensors = drawn_tensors(shapes_of(theirs))
    params = ours(vae.init, VAE_NAMES, tensors)
    rng = np.random.default_rng(0)
    images = np.float32(rng.uniform(-1, 1, (1, 64, 64, 3)))
    latents = np.float32(rng.standard_normal((1, 8, 8, 16)))
    expected = autoencoded(filled(theirs, tensors), images, latents)
    found = jax.jit(vae.encode)(params, images)._asdict()
    found["pictures"] = jax.jit(vae.decode)(params, latents)
    for name, array in found.items():
        assert relative_error(array, expected[name]) < 1e-4, name


@pytest.fixture(scope="module")
def xl():
    """A layer of the released text encoder: its parameters, and the library's."""
    theirs = released_t5(XL, VOCABULARY)
    tensors = drawn_tensors(shapes_of(theirs))
    ids, mask = map(jnp.asarray, prompts())
    params = ours(
        lambda key: T5Encoder(XL, VOCABULARY).init(key, ids, mask)["params"], T5_NAMES, tensors
    )
    return params, filled(theirs, tensors)


def states(params, ids, mask, **changes):
    t5 = T5Encoder(dataclasses.replace(XL, **changes), VOCABULARY)
    return np.asarray(jax.jit(t5.apply)({"params": params}, ids, mask), np.float32)


def test_the_text_encoder_at_its_released_width_is_that_of_transformers(xl):
    params, theirs = xl
    expected = encoded(theirs, *prompts()).last_hidden_state.numpy()
    assert relative_error(states(params, *prompts()), expected) < 1e-5
    assert relative_error(states(params, *prompts(), dtype="bfloat16"), expected) < 3e-2
