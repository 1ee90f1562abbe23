"""What a run keeps beside its parameters: moments and EMA, whole or in fewer bytes."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_allclose

from onediff_jax.errors import InputError
from onediff_jax.models.networks import Networks
from onediff_jax.models.nextdit import NextDiT, NextDiTConfig
from onediff_jax.models.t5 import T5Config, T5Encoder
from onediff_jax.sharding import MeshConfig, mesh_of
from onediff_jax.train.state import (
    OptimizerConfig,
    new_state,
    optimizer_of,
    random_bits,
    state_shardings,
    stochastically_rounded,
    updated_ema,
)

RELEASED = Networks(NextDiT(NextDiTConfig()), T5Encoder(T5Config(), 32), pretrained=("text",))


def test_stochastic_rounding_takes_a_neighbour_and_is_right_on_average():
    x = np.random.default_rng(0).normal(size=200).astype(np.float32) * np.float32(1e-3)
    rounded = jax.jit(jax.vmap(stochastically_rounded, (None, 0)))
    found = np.asarray(rounded(x, random_bits(jnp.arange(4000)))).astype(np.float64)
    below = (x.view(np.uint32) >> 16 << 16).view(np.float32)  # nearer to zero
    spacing = np.spacing(below.astype(ml_dtypes.bfloat16)).astype(np.float64)
    steps = (found - below) / spacing
    assert set(np.unique(steps)) == {0.0, 1.0}
    # The mean of 4,000 draws of one spacing or none: five standard deviations are 0.04 spacings.
    assert_allclose(steps.mean(0), (x - below) / spacing, atol=0.04)
    exact, seed = np.float32([0, 1, -0.5, np.inf, -np.inf, np.nan]), random_bits(jnp.int32(3))
    same = np.asarray(stochastically_rounded(jnp.asarray(exact), seed), np.float32)
    np.testing.assert_array_equal(same, exact)


@pytest.mark.parametrize("decay", [0.99, 0.9999])
def test_an_ema_in_bfloat16_follows_the_one_in_float32(decay):
    """Of parameters that stay where they are an EMA is known: the distance shrinks by the decay."""
    start, target, steps = 1.0, 1.25, 4000
    params = {"a": {"kernel": jnp.full((64, 64), target)}}
    held = {
        kind: {"a": {"kernel": jnp.full((64, 64), start, kind)}} for kind in ("float32", "bfloat16")
    }
    first = 10**6  # past the beginning, where the decay is less

    def step(s, held):
        return {kind: updated_ema(ema, params, first + s, decay) for kind, ema in held.items()}

    held = jax.jit(lambda held: jax.lax.fori_loop(0, steps, step, held))(held)
    expected = target - (target - start) * decay**steps
    found = {kind: np.float64(ema["a"]["kernel"]) for kind, ema in held.items()}
    assert held["bfloat16"]["a"]["kernel"].dtype == jnp.bfloat16
    assert_allclose(found["float32"], expected, rtol=2e-4)
    # Rounded to the nearest, it would stay at 1 with a decay of 0.9999: a step is 0.000025 of the
    # way, and the spacing there is 0.008.
    assert found["bfloat16"].mean() == pytest.approx(expected, abs=1e-3)
    # A number makes the way in steps of one spacing: as many as a binomial distribution has.
    assert found["bfloat16"].std() < 1.1 * math.sqrt((expected - start) * 2**-7)


def test_a_bfloat16_ema_does_not_depend_on_the_mesh():
    mesh = mesh_of(MeshConfig(data=2, fsdp=4))
    rng = np.random.default_rng(0)
    ema = {"kernel": rng.normal(size=(16, 24)).astype(ml_dtypes.bfloat16)}
    params = {"kernel": rng.normal(size=(16, 24)).astype(np.float32)}
    alone = jax.jit(updated_ema, static_argnums=3)(ema, params, jnp.int32(10**5), 0.99)
    split = jax.NamedSharding(mesh, P("fsdp"))
    ema, params = jax.device_put((ema, params), split)
    shared = jax.jit(updated_ema, static_argnums=3)(ema, params, jnp.int32(10**5), 0.99)
    assert (np.asarray(alone["kernel"]) == np.asarray(shared["kernel"])).all()
    other = updated_ema(ema, params, jnp.int32(10**5 + 1), 0.99)
    assert (np.asarray(alone["kernel"]) != np.asarray(other["kernel"])).any()


def adafactors_step(x, grad, row, column, whole, s, rate, weight_decay):
    """arXiv 1804.04235, algorithms 4 (matrices), 5 (vectors) and 6, in float64, at fixed rates."""
    decay, square = 1 - s**-0.8, grad**2 + 1e-30
    if x.ndim == 2:
        row = decay * row + (1 - decay) * square.sum(1)
        column = decay * column + (1 - decay) * square.sum(0)
        update = grad / np.sqrt(np.outer(row, column) / row.sum())
    else:
        whole = decay * whole + (1 - decay) * square
        update = grad / np.sqrt(whole)
    update /= max(1.0, np.sqrt((update**2).mean()))
    return x - rate * (update + weight_decay * (x.ndim == 2) * x), row, column, whole


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adafactor_is_the_published_one_for_every_layer_of_a_stack(weight_decay):
    rng, layers, rows, columns = np.random.default_rng(0), 3, 130, 160
    kernel, bias = rng.normal(size=(layers, rows, columns)), rng.normal(size=columns)
    params = {"layers": {"wq": {"kernel": jnp.float32(kernel)}}, "end": {"bias": jnp.float32(bias)}}
    config = OptimizerConfig(
        kind="adafactor", learning_rate=1e-2, warmup=0, clip=1e9, weight_decay=weight_decay
    )
    optimizer = optimizer_of(config, 100)
    state = optimizer.init(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 0.1 * kernel.size
    held = [(array, 0.0, 0.0, 0.0) for array in (*kernel, bias)]
    for s in range(1, 5):
        # Layers and steps differ in size, so that it shows what is clipped together.
        size = np.array([1.0, 10.0, 0.1])[:, None, None] * s**2
        grad = rng.normal(size=kernel.shape) * size
        grads = {"layers": {"wq": {"kernel": grad}}, "end": {"bias": grad[0, 0]}}
        updates, state = jax.jit(optimizer.update)(jax.tree.map(jnp.float32, grads), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        held = [
            adafactors_step(array, g, *rest, s, 1e-2, weight_decay)
            for (array, *rest), g in zip(held, (*grad, grad[0, 0]), strict=True)
        ]
    expected = [array for array, *_ in held]
    assert_allclose(params["layers"]["wq"]["kernel"], expected[:3], rtol=0, atol=2e-6)
    assert_allclose(params["end"]["bias"], expected[3], rtol=0, atol=2e-6)


KEPT = {
    "adamw": (dict(), 8.0, 4.0),
    "first moment in bfloat16": (dict(mu_dtype="bfloat16"), 6.0, 4.0),
    "adafactor": (dict(kind="adafactor"), 0.0038, 4.0),
    "no EMA": (dict(ema=0.0), 8.0, 0.0),
    "EMA in bfloat16": (dict(ema_dtype="bfloat16"), 8.0, 2.0),
}


@pytest.mark.parametrize(("changes", "of_moments", "of_ema"), KEPT.values(), ids=KEPT)
def test_the_released_size_keeps_so_many_bytes_a_parameter_and_all_of_it_is_sharded(
    changes, of_moments, of_ema
):
    config = dataclasses.replace(OptimizerConfig(), **changes)
    optimizer, mesh = optimizer_of(config, 100), mesh_of(MeshConfig(data=1, fsdp=8))
    shardings = state_shardings(RELEASED, optimizer, mesh, config=config)
    state = jax.eval_shape(lambda: new_state(RELEASED, optimizer, jax.random.key(0), config=config))
    assert jax.tree.structure(state) == jax.tree.structure(shardings)

    def total(part, shard=False):
        pairs = zip(jax.tree.leaves(getattr(state, part)),
                    jax.tree.leaves(getattr(shardings, part)), strict=True)  # fmt: skip
        shapes = [(s.shard_shape(x.shape) if shard else x.shape, x.dtype) for x, s in pairs]
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)

    params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert params == 2_800_389_184
    for part, expected in (("moments", of_moments), ("ema", of_ema)):
        assert total(part) / params == pytest.approx(expected, rel=0.01)
        if expected > 1:
            assert total(part, shard=True) < total(part) / 7.9


def test_adafactors_rows_and_columns_are_whole_on_every_device_and_the_rest_as_its_parameters():
    optimizer, mesh = (
        optimizer_of(OptimizerConfig(kind="adafactor"), 100),
        mesh_of(MeshConfig(fsdp=8)),
    )
    shardings = state_shardings(RELEASED, optimizer, mesh)
    factored = shardings.moments[1][0]
    flat = {part: flatten_dict(getattr(factored, part), sep="/") for part in ("v_row", "v")}
    matrix, embedded = "denoiser/layers/feed_forward/w1/kernel", "denoiser/layers/attention/gate"
    assert flat["v_row"][matrix].spec == flat["v"][matrix].spec == P()
    shapes = jax.eval_shape(
        optimizer.init, nn.meta.unbox(jax.eval_shape(RELEASED.init, jax.random.key(0)))
    )
    assert flatten_dict(shapes[1][0].v_row, sep="/")[matrix].shape == (16, 3840)
    params = flatten_dict(shardings.params, sep="/")
    assert flat["v"][embedded].spec == params[embedded].spec


def test_adafactor_has_no_first_moment_to_keep_in_another_type():
    with pytest.raises(InputError, match="mu_dtype is 'bfloat16'"):
        OptimizerConfig(kind="adafactor", mu_dtype="bfloat16")
