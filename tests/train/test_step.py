import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drawn import drawn_params
from tiny import tiny_config

from onediff_jax.data.batching import loader
from onediff_jax.data.batching.rows import TASK_NAMES
from onediff_jax.models.networks import Networks
from onediff_jax.ops import flow
from onediff_jax.sharding import MeshConfig, mesh_of
from onediff_jax.train.prepare import prepare
from onediff_jax.train.state import (
    State,
    is_matrix,
    learning_rate_of,
    optimizer_of,
    state_shardings,
    updated_ema,
)
from onediff_jax.train.step import losses, named_scalars, train_step_of

CONFIG = tiny_config()
RUN = prepare(CONFIG)
NETWORKS, ROWS = RUN.networks, RUN.rows
PARAMS = drawn_params(jax.eval_shape(NETWORKS.init, jax.random.key(0)))


RECIPE = flow.FlowConfig(
    balance="example", clean=0.7, clean_sigma=0.05, task_weights={"depth2image": 0.001}
)


def measured_step(flow_config=CONFIG.flow) -> dict:
    """The metrics of the first step from random parameters, on one device."""
    mesh = mesh_of(MeshConfig(), jax.devices()[:1])
    optimizer = optimizer_of(CONFIG.optimizer, CONFIG.steps)
    shardings = state_shardings(NETWORKS, optimizer, mesh)
    state = State(jnp.zeros((), jnp.int32), PARAMS, PARAMS, optimizer.init(PARAMS), {})
    step = train_step_of(NETWORKS, optimizer, ROWS.layout, flow_config, CONFIG.optimizer, shardings)
    batch = loader.MakeBatch(ROWS, CONFIG.rows, tuple(range(CONFIG.rows)))(0)
    _, metrics = jax.jit(step)(jax.device_put(state, shardings), batch, jax.random.key(7))
    return named_scalars(metrics)


def test_the_rows_are_padded_unequally_and_packed():
    batch = loader.MakeBatch(ROWS, CONFIG.rows, tuple(range(CONFIG.rows)))(0)
    valid = batch.token_mask.sum(1)
    assert len(set(valid)) > 1 and valid.max() <= ROWS.layout.tokens
    assert len(set((batch.task >= 0).sum(1))) > 1


def test_the_loss_is_the_mean_over_valid_tokens_of_the_batch():
    batch = jax.tree.map(jnp.asarray, loader.MakeBatch(ROWS, 8, tuple(range(8)))(0))
    key, rows = jax.random.key(7), jnp.arange(8)
    errors, sigmas = jax.jit(
        lambda: losses(NETWORKS, PARAMS, batch, rows, key, ROWS.layout, CONFIG.flow)
    )()
    measured = measured_step()
    valid = np.asarray(batch.token_mask)
    assert measured["loss"] == pytest.approx(float(np.asarray(errors)[valid].mean()), rel=1e-5)
    of_token = np.asarray(batch.task)[
        np.arange(8)[:, None], np.asarray(batch.example_of_view)[:, ROWS.layout.view_of_token]
    ]
    for i, name in enumerate(TASK_NAMES):
        of_task = np.asarray(errors)[valid & (of_token == i)]
        if of_task.size:
            assert measured[f"loss/{name}"] == pytest.approx(float(of_task.mean()), rel=1e-5)
        else:
            assert f"loss/{name}" not in measured
    low = np.asarray(sigmas)[:, ROWS.layout.view_of_token] * 10 // 1 == 5
    assert measured["loss/sigma_0.5"] == pytest.approx(
        float(np.asarray(errors)[valid & low].mean()), rel=1e-5
    )


class Echo(Networks):
    """Networks that predict what they are shown, and say which noise levels they are told."""

    def states(self, params, ids, mask):
        return ids

    def velocity(self, params, noisy, sigmas, *_):
        return noisy + 10 * sigmas[:, ROWS.layout.view_of_token, None]


def test_clean_views_are_shown_without_noise_at_a_small_level():
    batch = jax.tree.map(jnp.asarray, loader.MakeBatch(ROWS, 8, tuple(range(8)))(0))
    key, rows, layout = jax.random.key(7), jnp.arange(8), ROWS.layout
    found, told = losses(Echo(*NETWORKS), None, batch, rows, key, layout, RECIPE)
    sigmas, noise = flow.draw(key, rows, layout, batch.latents.shape[-1], RECIPE)
    clean, levels = flow.clean_views(key, rows, batch.example_of_view, layout, RECIPE)
    assert 5 < clean.sum() < clean.size / 2 and told[clean].max() < 0.05
    np.testing.assert_array_equal(told, np.where(clean, levels, sigmas))
    of_token = layout.view_of_token
    level = np.where(clean, 0, sigmas)[:, of_token, None]
    shown = (1 - level) * batch.latents + level * noise
    errors = shown + 10 * told[:, of_token, None] - (noise - batch.latents)
    np.testing.assert_allclose(found, np.square(errors).mean(-1), rtol=1e-5)


def test_clean_views_weigh_nothing_and_tasks_by_their_factor():
    measured = measured_step(RECIPE)
    batch = loader.MakeBatch(ROWS, CONFIG.rows, tuple(range(CONFIG.rows)))(0)
    key, rows, layout = jax.random.key(7), jnp.arange(CONFIG.rows), ROWS.layout
    arrays = jax.tree.map(jnp.asarray, batch)
    errors, _ = jax.jit(lambda: losses(NETWORKS, PARAMS, arrays, rows, key, layout, RECIPE))()
    clean, _ = flow.clean_views(key, rows, arrays.example_of_view, layout, RECIPE)
    counted = batch.token_mask & ~np.asarray(clean)[:, layout.view_of_token]
    example = batch.example_of_view[:, layout.view_of_token]
    means, factors, by_task = [], [], {}
    for b in range(CONFIG.rows):
        for e in set(example[b][counted[b]]):
            here = np.asarray(errors)[b, counted[b] & (example[b] == e)]
            name = TASK_NAMES[batch.task[b, e]]
            means.append(here.mean())
            factors.append(0.001 if name == "depth2image" else 1)
            by_task.setdefault(name, []).extend(here)
    assert len(set(factors)) == 2
    assert measured["loss"] == pytest.approx(np.average(means, weights=factors), rel=1e-5)
    for name, here in by_task.items():
        assert measured[f"loss/{name}"] == pytest.approx(np.mean(here), rel=1e-5)


def test_padding_receives_no_weight_and_gives_no_gradient():
    batch = jax.tree.map(jnp.asarray, loader.MakeBatch(ROWS, 8, tuple(range(8)))(0))
    weights = flow.token_weights(batch.token_mask, batch.example_of_view, ROWS.layout, "token")

    def loss(latents):
        errors, _ = losses(
            NETWORKS,
            PARAMS,
            batch._replace(latents=latents),
            jnp.arange(8),
            jax.random.key(7),
            ROWS.layout,
            CONFIG.flow,
        )
        return (errors * weights).sum()

    grads = np.abs(np.asarray(jax.jit(jax.grad(loss))(batch.latents)))
    valid = np.asarray(batch.token_mask)
    assert grads[~valid].size and grads[~valid].max() == 0 and grads[valid].max() > 0


def test_the_average_follows_the_published_decay():
    steps, params, ema = 5, 1.0, 0.0
    expected = 0.0
    for s in range(steps):
        decay = min(0.9999, (1 + s) / (10 + s))
        expected = decay * expected + (1 - decay) * params
        ema = updated_ema(ema, params, jnp.asarray(s), 0.9999)
    assert float(ema) == pytest.approx(expected, rel=1e-6)
    assert float(updated_ema(0.0, 1.0, jnp.asarray(10**6), 0.9999)) == pytest.approx(1e-4, rel=1e-2)


def test_the_learning_rate_warms_up_and_anneals_to_zero():
    config = dataclasses.replace(CONFIG.optimizer, learning_rate=0.1, warmup=10, schedule="linear")
    rate = learning_rate_of(config, 110)
    assert [float(rate(s)) for s in (0, 5, 10, 60, 110)] == pytest.approx([0, 0.05, 0.1, 0.05, 0])
    constant = learning_rate_of(dataclasses.replace(config, schedule="constant"), 110)
    assert float(constant(109)) == pytest.approx(0.1)


def test_weight_decay_touches_matrices_alone():
    optimizer = optimizer_of(
        dataclasses.replace(CONFIG.optimizer, weight_decay=0.5, learning_rate=1.0, warmup=0), 10
    )
    still = jax.tree.map(np.zeros_like, PARAMS)
    updates, _ = jax.jit(optimizer.update)(still, optimizer.init(PARAMS), PARAMS)
    moved = jax.tree_util.tree_map_with_path(
        lambda path, u: bool(np.abs(u).max() > 0) == is_matrix(path, u), updates
    )
    assert all(jax.tree.leaves(moved))


def test_the_gradient_is_clipped_by_its_global_norm():
    optimizer = optimizer_of(CONFIG.optimizer, CONFIG.steps)
    large = jax.tree.map(lambda x: 100 * np.ones_like(x), PARAMS)
    _, (_, (adam, *_), _) = jax.jit(optimizer.update)(large, optimizer.init(PARAMS), PARAMS)
    first = jax.tree.map(lambda m: m / (1 - CONFIG.optimizer.b1), adam.mu)
    assert float(optax.global_norm(first)) == pytest.approx(CONFIG.optimizer.clip, rel=1e-4)
