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
from onediff_jax.errors import InputError
from onediff_jax.ops import flow
from onediff_jax.sharding import MeshConfig, mesh_of, placed, shardings_of
from onediff_jax.train import run
from onediff_jax.train.held_out import SEED, UNIFORM, HeldOutLoss, held_out_rows

CONFIG = tiny_config(evaluate=run.EvaluateConfig(rows=16))
SOURCES = run.opened(CONFIG.data, "validation")
ASSETS = run.fitted_assets(CONFIG, SOURCES)
NETWORKS, TOKENIZER = run.assembled(CONFIG, ASSETS)
ROWS = held_out_rows(CONFIG, SOURCES, ASSETS, TOKENIZER)
SHAPES = jax.eval_shape(NETWORKS.init, jax.random.key(0))
PARAMS = jax.device_get(drawn_params(SHAPES))


def held_out(params, rows=ROWS, **sizes):
    """The held-out loss of parameters on a mesh of these sizes."""
    mesh = mesh_of(MeshConfig(**sizes), jax.devices() if sizes else jax.devices()[:1])
    params = placed(params, shardings_of(SHAPES, mesh))
    return HeldOutLoss(rows, CONFIG, NETWORKS, mesh), params


def test_a_denoiser_that_predicts_zero_has_the_loss_of_the_velocities_themselves():
    """Fresh parameters do; noise minus latents is known without any network."""
    fresh = jax.jit(lambda: nn.meta.unbox(NETWORKS.init(jax.random.key(1))))()
    loss, params = held_out(jax.device_get(fresh))
    found = loss(params)
    batch = loader.MakeBatch(ROWS, 16, tuple(range(16)))(0)
    numbers, features = jax.numpy.arange(16), batch.latents.shape[-1]
    sigmas, noise = flow.draw(jax.random.key(SEED), numbers, ROWS.layout, features, UNIFORM)
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
    sigmas, _ = flow.draw(jax.random.key(SEED), jax.numpy.arange(4000), layout, 1, UNIFORM)
    counts, _ = np.histogram(sigmas, bins=10, range=(0, 1))
    assert counts.sum() == sigmas.size and chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    "sizes", [dict(data=2, fsdp=2, tensor=2), dict(data=4, sequence=1, fsdp=2)], ids=str
)
def test_every_mesh_finds_the_same_loss_again_and_again(sizes):
    alone, params = held_out(PARAMS)
    expected = alone(params)
    loss, params = held_out(PARAMS, **sizes)
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


@pytest.mark.parametrize("name", ["every", "rows", "grids", "examples"])
def test_counts_below_their_least_are_refused(name):
    with pytest.raises(InputError, match=f"evaluate.{name} is -1; it must be at least"):
        run.EvaluateConfig(**{name: -1})
