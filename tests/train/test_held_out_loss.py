"""The loss of held-out examples: what it is, on every mesh, and which examples it is of."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from drawn import drawn_params
from scipy.stats import chisquare
from tiny import Blobs, tiny_config

from onediff_jax.data.batching import loader
from onediff_jax.data.batching.rows import TASK_NAMES
from onediff_jax.data.batching.settings import SlotConfig
from onediff_jax.data.records import SourceSettings
from onediff_jax.ops import flow
from onediff_jax.sharding import MeshConfig, mesh_of, sharded_arrays, shardings_of
from onediff_jax.train.config import EvaluateConfig
from onediff_jax.train.prepare import held_out_rows, prepare
from onediff_jax.train.step import HELD_OUT_FLOW, HELD_OUT_SEED, HeldOutLoss

CONFIG = tiny_config(evaluate=EvaluateConfig(rows=16))
RUN = prepare(CONFIG)
ASSETS, NETWORKS, TOKENIZER, ROWS = RUN.assets, RUN.networks, RUN.tokenizer, RUN.held_out_rows
SHAPES = jax.eval_shape(NETWORKS.init, jax.random.key(0))
PARAMS = jax.device_get(drawn_params(SHAPES))


def held_out(params, rows=ROWS, **sizes):
    """The held-out loss of parameters on a mesh of these sizes."""
    mesh = mesh_of(MeshConfig(**sizes), jax.devices() if sizes else jax.devices()[:1])
    params = sharded_arrays(params, shardings_of(SHAPES, mesh))
    return HeldOutLoss(rows, CONFIG, NETWORKS, mesh), params


def test_a_denoiser_that_predicts_zero_has_the_loss_of_the_velocities_themselves():
    """Fresh parameters do; noise minus latents is known without any network."""
    fresh = jax.jit(lambda: nn.meta.unbox(NETWORKS.init(jax.random.key(1))))()
    loss, params = held_out(jax.device_get(fresh))
    found = loss(params)
    batch = loader.MakeBatch(ROWS, 16, tuple(range(16)))(0)
    numbers, features = jax.numpy.arange(16), batch.latents.shape[-1]
    sigmas, noise = flow.draw(
        jax.random.key(HELD_OUT_SEED), numbers, ROWS.layout, features, HELD_OUT_FLOW
    )
    errors = np.square(np.asarray(noise) - batch.latents).mean(-1)
    valid = batch.token_mask
    assert found["held_out/loss"] == pytest.approx(errors[valid].mean(), rel=1e-5)
    task_of_token = np.take_along_axis(batch.task, np.maximum(batch.example_of_view, 0), 1)[
        :, ROWS.layout.view_of_token
    ]
    level = np.asarray(sigmas)[:, ROWS.layout.view_of_token]
    for task in (0, 2, len(TASK_NAMES) - 1):
        own = valid & (task_of_token == task)
        expected = errors[own].mean()
        assert found[f"held_out/loss/{TASK_NAMES[task]}"] == pytest.approx(expected, rel=1e-5)
    for tenth in (0, 4, 9):
        own = valid & (level >= tenth / 10) & (level < (tenth + 1) / 10)
        expected = errors[own].mean()
        assert found[f"held_out/loss/sigma_0.{tenth}"] == pytest.approx(expected, rel=1e-5)


def test_every_level_of_noise_counts_the_same():
    layout = ROWS.layout
    sigmas, _ = flow.draw(
        jax.random.key(HELD_OUT_SEED), jax.numpy.arange(4000), layout, 1, HELD_OUT_FLOW
    )
    counts, _ = np.histogram(sigmas, bins=10, range=(0, 1))
    assert counts.sum() == sigmas.size and chisquare(counts).pvalue > 1e-3


def test_eight_devices_find_the_loss_of_one_again_and_again():
    alone, params = held_out(PARAMS)
    expected = alone(params)
    loss, params = held_out(PARAMS, data=2, fsdp=2, tensor=2)
    found = loss(params)
    assert found == loss(params)
    assert found.keys() == expected.keys() and len(found) > 20
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)


def test_prompts_are_kept_and_tasks_that_nothing_held_out_serves_are_left_out():
    class Plain(Blobs):
        fields = frozenset({"image", "caption", "depth"})

    sources = {"none": Blobs(0), "plain": Plain(5)}
    data = dataclasses.replace(CONFIG.data, prompt_dropout=1.0)
    config = dataclasses.replace(CONFIG, data=data)
    rows = held_out_rows(config, sources, ASSETS, TOKENIZER)
    batch = loader.MakeBatch(rows, 16, tuple(range(16)))(0)
    tasks = {TASK_NAMES[task] for task in np.unique(batch.task) if task >= 0}
    assert {"text2image", "depth2image"} <= tasks and "multiview" not in tasks
    empty, _ = TOKENIZER("")
    used = batch.task >= 0
    assert used.any() and not used.all()
    assert not (batch.text[used] == empty).all(-1).any()
    assert not batch.token_mask[(batch.example_of_view < 0)[:, rows.layout.view_of_token]].any()
    assert held_out_rows(config, {"none": Blobs(0)}, ASSETS, TOKENIZER) is None


def test_held_out_records_that_serve_no_task_of_the_run_have_no_loss():
    """A mean over no tokens is not a number."""
    data = dataclasses.replace(CONFIG.data, tasks={"text2image": 1.0}, row=(SlotConfig(1, 4),))
    other = Blobs(5)
    other.settings = SourceSettings(tasks=("depth2image",))
    config = dataclasses.replace(CONFIG, data=data)
    assert held_out_rows(config, {"mine": Blobs(0), "other": other}, ASSETS, TOKENIZER) is None
