"""The autoencoder against diffusers' (tests/support/witnesses.py), and what is ours alone."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import relative_error
from flax.traverse_util import flatten_dict
from witnesses import FILE, PICTURES, SMALL, images_of, vae_tensors

from onediff_jax.errors import InputError
from onediff_jax.models.vae import AutoencoderKL, Posterior, VAEConfig
from onediff_jax.release.mapping import from_released, released_shapes
from onediff_jax.release.names import VAE_NAMES
from onediff_jax.sharding import MeshConfig, mesh_of, shardings_of

VAE = AutoencoderKL(SMALL)
ENCODE, DECODE = jax.jit(VAE.encode), jax.jit(VAE.decode)


def boxed_shapes(config):
    return jax.eval_shape(AutoencoderKL(config).init, jax.random.key(0))


def params_of(config, size=1.0):
    shapes = nn.meta.unbox(boxed_shapes(config))
    return from_released(vae_tensors(released_shapes(shapes, VAE_NAMES), size), VAE_NAMES, shapes)


PARAMS = params_of(SMALL)
MANY = np.float32(np.random.default_rng(0).uniform(-1, 1, (2, 3, 8, 12, 3)))


def test_the_released_shape_has_the_released_number_of_parameters():
    sizes = [leaf.size for leaf in jax.tree.leaves(boxed_shapes(VAEConfig()))]
    assert sum(sizes) == 83_819_683


@pytest.mark.parametrize("case", PICTURES)
def test_images_and_latents_are_those_of_diffusers(case):
    config, _, size = PICTURES[case]
    vae, params, expected = AutoencoderKL(config), params_of(config, size), np.load(FILE)
    images, latents = images_of(case)
    found = jax.jit(vae.encode)(params, images)._asdict()
    found["pictures"] = jax.jit(vae.decode)(params, latents)
    for name, array in found.items():
        assert relative_error(array, expected[f"{case}/{name}"]) < 1e-5, name


def test_images_have_any_batch_and_do_not_see_each_other():
    found = ENCODE(PARAMS, MANY).mean
    decoded = DECODE(PARAMS, found)
    assert found.shape == (2, 3, 4, 6, 4) and decoded.shape == MANY.shape
    changed = MANY.copy()
    changed[0, 1] *= -1
    others = np.arange(6).reshape(2, 3) != 1
    moved = ENCODE(PARAMS, changed).mean
    assert np.array_equal(np.abs(moved - found).max((2, 3, 4)) < 1e-6, others)
    again = DECODE(PARAMS, moved)
    assert np.array_equal(np.abs(again - decoded).max((2, 3, 4)) < 1e-6, others)


def test_log_variances_are_bounded():
    params = params_of(SMALL)
    params["encoder"]["conv_out"]["bias"] = jnp.float32([0, 0, 0, 0, 500, 500, -500, -500])
    log_variance = ENCODE(params, MANY).log_variance
    assert np.all(log_variance[..., :2] == 20) and np.all(log_variance[..., 2:] == -30)


def test_samples_have_the_mean_and_variance_of_their_latent():
    mean, std = np.float32([-3, 0, 5]), np.float32([0.1, 1, 4])
    ones = np.ones((400, 400, 1), np.float32)
    posterior = Posterior(jnp.asarray(ones * mean), jnp.asarray(ones * 2 * np.log(std)))
    drawn = np.asarray(posterior.sample(jax.random.key(0)))
    np.testing.assert_allclose(drawn.mean((0, 1)), mean, atol=0.01 * std.max())
    np.testing.assert_allclose(drawn.std((0, 1)), std, rtol=0.01)
    assert not np.array_equal(drawn, posterior.sample(jax.random.key(1)))


@pytest.mark.parametrize(("use_shift_factor", "shift"), [(False, 0), (True, 0.0609)])
def test_latents_are_normalised_and_back(use_shift_factor, shift):
    vae = AutoencoderKL(VAEConfig(use_shift_factor=use_shift_factor))
    latents = np.random.default_rng(0).standard_normal((2, 3, 16))
    np.testing.assert_allclose(vae.normalised(latents), 1.5305 * (latents - shift))
    np.testing.assert_allclose(vae.unnormalised(vae.normalised(latents)), latents)
    np.testing.assert_allclose(vae.normalised(vae.unnormalised(latents)), latents)


def test_half_precision_stays_near_and_its_islands_stay_float32():
    half = AutoencoderKL(dataclasses.replace(SMALL, dtype="bfloat16"))
    latents = ENCODE(PARAMS, MANY).mean
    for function, other, x in ((half.encode, ENCODE, MANY), (half.decode, DECODE, latents)):
        found, exact = jax.jit(function)(PARAMS, x), other(PARAMS, x)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))
        errors = jax.tree.map(relative_error, found, exact)
        assert max(jax.tree.leaves(errors)) < 3e-2
        jaxpr = str(jax.make_jaxpr(function)(PARAMS, x))
        assert "bf16" in jaxpr and "conv_general_dilated" in jaxpr and " exp " in jaxpr
        for line in jaxpr.splitlines():
            if any(
                f" = {part}" in line
                for part in ("exp", "rsqrt", "logistic", "reduce_max", "reduce_sum")
            ):
                assert "bf16" not in line, line


def test_every_kernel_is_sharded():
    mesh = mesh_of(MeshConfig(data=2, fsdp=4))
    shardings = flatten_dict(shardings_of(boxed_shapes(VAEConfig()), mesh), sep="/")
    whole = [path for path, s in shardings.items() if "kernel" in path and "fsdp" not in s.spec]
    assert whole == [] and len(shardings) == 244


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(norm_num_groups=3), "not all multiples of norm_num_groups, 3"),
        (dict(tile=20), "multiple of 8"),
        (dict(tile=0), "multiple of 8"),
        (dict(dtype="float16"), "float32 or bfloat16"),
    ],
)
def test_impossible_shapes_are_refused_with_the_way_out(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SMALL, **change)


def test_an_image_that_latents_do_not_fill_is_refused():
    with pytest.raises(InputError, match="8 x 11 does not cut into latents of 2 x 2"):
        VAE.encode(PARAMS, jnp.zeros((8, 11, 3)))
