"""Normalisation against flax's own modules, in values and gradients, alone and over devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import relative_error
from jax.ad_checkpoint import checkpoint_policies
from jax.sharding import PartitionSpec as P

from onediff_jax.models.norms import STATISTICS, Norm, normalised
from onediff_jax.sharding import ALONE, MeshConfig, mesh_group, mesh_of

FEATURES = 24
NORMS = {
    "rms": (dict(centred=False), nn.RMSNorm, {}),
    "layer": (dict(centred=True), nn.LayerNorm, dict(use_fast_variance=False)),
    "layer without weights": (
        dict(centred=True, affine=False),
        nn.LayerNorm,
        dict(use_fast_variance=False, use_scale=False, use_bias=False),
    ),
}


def drawn(seed=0, shape=(2, 5, FEATURES)):
    """Features far from zero, of unequal spread."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(3 + rng.uniform(0.1, 4, shape) * rng.standard_normal(shape), jnp.float32)


def weights(module, x):
    """Drawn parameters of a module."""
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), x))
    rng = np.random.default_rng(1)
    draw = lambda p: jnp.asarray(rng.standard_normal(p.shape), p.dtype)  # noqa: E731
    return jax.tree.map(draw, shapes)


def outcome(module, variables, x, d):
    """Value, and cotangents of parameters and input."""
    y, pull = jax.vjp(lambda v, x: module.apply(v, x), variables, x)
    return y, *pull(d)


@pytest.mark.parametrize("axis", [-1, -2], ids=["features last", "tokens last"])
@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_is_that_of_flax_in_values_and_gradients(kind, axis):
    settings, theirs, options = NORMS[kind]
    x, d = drawn(0), drawn(2)
    ours = Norm(0.1, "embed", axis=axis, **settings)
    flipped = lambda y: jnp.moveaxis(y, -1, axis)  # noqa: E731
    theirs = theirs(epsilon=0.1, **options)
    variables = weights(theirs, x)
    shapes = nn.meta.unbox(jax.eval_shape(ours.init, jax.random.key(0), flipped(x)))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)
    expected = outcome(theirs, variables, x, d)
    value, of_weights, of_x = outcome(ours, variables, flipped(x), flipped(d))
    back = lambda y: jnp.moveaxis(y, axis, -1)  # noqa: E731
    for found, true in zip(
        jax.tree.leaves((back(value), of_weights, back(of_x))),
        jax.tree.leaves(expected),
        strict=True,
    ):
        assert relative_error(found, true) < 2e-6


@pytest.mark.parametrize("kind", NORMS)
def test_bfloat16_is_normalised_in_float32(kind):
    settings = NORMS[kind][0]
    x, d = drawn(0).astype(jnp.bfloat16), drawn(2)
    norm = Norm(1e-5, "embed", **settings)
    variables = weights(norm, x)
    value, _, of_x = outcome(norm, variables, x, d)
    exact, _, of_exact = outcome(norm, variables, x.astype(jnp.float32), d)
    assert value.dtype == jnp.float32 and of_x.dtype == jnp.bfloat16
    np.testing.assert_array_equal(value, exact)
    np.testing.assert_array_equal(of_x, of_exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("kind", NORMS)
def test_devices_that_share_the_features_normalise_them_as_one(kind):
    settings = NORMS[kind][0]
    mesh = mesh_of(MeshConfig(data=2, tensor=4))
    x, d = drawn(0, (2, FEATURES, 3)), drawn(2, (2, FEATURES, 3))

    def work(group, variables, x, d):
        return outcome(Norm(1e-5, "heads", axis=-2, group=group, **settings), variables, x, d)

    def shares(variables, x, d):
        value, of_weights, of_x = work(mesh_group(mesh, "tensor"), variables, x, d)
        return value, jax.tree.map(lambda y: jax.lax.psum(y, "data"), of_weights), of_x

    variables = weights(Norm(1e-5, "heads", axis=-2, **settings), x)
    rows, of_weights = P("data", "tensor"), jax.tree.map(lambda _: P("tensor"), variables)
    specs = dict(in_specs=(of_weights, rows, rows), out_specs=(rows, of_weights, rows))
    found = jax.jit(jax.shard_map(shares, mesh=mesh, check_vma=False, **specs))(variables, x, d)
    expected = work(ALONE, variables, x, d)
    for ours, true in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(ours, true) < 2e-6


@pytest.mark.parametrize(("centred", "kept"), [(True, 2), (False, 1)])
def test_of_a_rematerialised_norm_a_number_a_token_can_be_kept(centred, kept):
    policy = checkpoint_policies.save_only_these_names(STATISTICS)
    norm = jax.checkpoint(lambda x: normalised(x, 1e-5, -1, centred, ALONE), policy=policy)
    x = drawn()
    residuals = jax.tree.leaves(jax.vjp(norm, x)[1])
    sizes = sorted(np.shape(r) for r in residuals if np.shape(r) not in ((), x.shape))
    assert sizes == [(*x.shape[:-1], 1)] * kept
