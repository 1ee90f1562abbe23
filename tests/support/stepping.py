"""A small network whose heads, rows and tokens can be split, its batches and its steps."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from drawn import drawn_params
from jax.experimental import multihost_utils

from onediff_jax.data.batching.rows import Batch
from onediff_jax.models.networks import Networks
from onediff_jax.models.nextdit import NextDiT, NextDiTConfig
from onediff_jax.models.t5 import T5Config, T5Encoder
from onediff_jax.ops.flow import FlowConfig
from onediff_jax.ops.layout import Layout, Slot
from onediff_jax.sharding import MeshConfig, global_batch, local_rows, mesh_of, replicated
from onediff_jax.train.state import OptimizerConfig, State, state_shardings
from onediff_jax.train.step import train_step_of

ROWS, VOCABULARY = 8, 11
# Query heads per key head and text key heads are such that over two devices all text heads are
# read by each, and over four some of them.
MODEL = NextDiTConfig(
    width=48,
    depth=2,
    heads=8,
    kv_heads=4,
    channels=2,
    multiple_of=8,
    attention="reference",
    dtype="float32",
)
TEXT = T5Config(width=8, depth=2, heads=4, head_width=4, hidden=8, dtype="float32")
ONE_SLOT = Layout((Slot(2, 8, examples=2),))
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup=1, clip=1e9, weight_decay=0.1)


def networks_of(remat: str = "none", **changes) -> Networks:
    model = dataclasses.replace(MODEL, **changes)
    return Networks(NextDiT(model, remat), T5Encoder(TEXT, VOCABULARY))


def drawn_batch(layout: Layout) -> Batch:
    """Rows with padding, and among packed examples an empty place."""
    rng = np.random.default_rng(0)
    tokens, examples = layout.tokens, layout.examples
    place, example_of_view = 0, []
    for slot in layout.slots:
        held = np.sort(rng.integers(0, slot.examples, (ROWS, slot.views)), 1) + place
        example_of_view.append(np.where(rng.random(held.shape) < 0.1, -1, held))
        place += slot.examples
    example_of_view = np.concatenate(example_of_view, 1).astype(np.int32)
    filled = (example_of_view >= 0)[:, layout.view_of_token]
    text_mask = np.arange(5) < rng.integers(1, 6, (ROWS, examples, 1))
    return Batch(
        latents=rng.standard_normal((ROWS, tokens, 8)).astype(np.float32),
        deviations=np.zeros((ROWS, tokens, 0), np.float32),
        pixels=np.zeros((ROWS, tokens, 0), np.uint8),
        encoded=np.ones((ROWS, layout.views), bool),
        positions=rng.integers(0, 5, (ROWS, tokens, 3)).astype(np.int32),
        example_of_view=example_of_view,
        token_mask=filled & (rng.random((ROWS, tokens)) < 0.8),
        text=rng.integers(0, VOCABULARY, (ROWS, examples, 5)).astype(np.int32),
        text_mask=text_mask,
        task=rng.integers(-1, 3, (ROWS, examples)).astype(np.int32),
        source=rng.integers(-1, 2, (ROWS, examples)).astype(np.int32),
        bad_records=rng.integers(0, 2, (ROWS, examples)).astype(np.int32),
    )


def descended(mesh: jax.sharding.Mesh, steps: int = 2) -> tuple[float, list[np.ndarray]]:
    """The first loss, and all parameters after some steps of gradient descent."""
    networks, optimizer = networks_of(), optax.sgd(0.1)
    params = drawn_params(jax.eval_shape(networks.init, jax.random.key(0)))
    params = jax.tree.map(np.float32, params)
    shardings = state_shardings(networks, optimizer, mesh)
    step = train_step_of(networks, optimizer, ONE_SLOT, FlowConfig(), OPTIMIZER, shardings)
    step = jax.jit(step, out_shardings=(shardings, replicated(mesh)))
    state = State(jnp.zeros((), jnp.int32), params, params, optimizer.init(params), {})
    state = jax.device_put(jax.tree.map(np.asarray, state), shardings)
    here = jax.tree.map(lambda x: x[local_rows(mesh, ROWS)], drawn_batch(ONE_SLOT))
    key = jax.jit(lambda: jax.random.key(7), out_shardings=replicated(mesh))()
    loss = None
    for _ in range(steps):
        state, metrics = step(state, global_batch(here, mesh, ROWS), key)
        loss = loss or float(metrics["loss"].compute())
    whole = multihost_utils.process_allgather(state.params, tiled=True)
    return loss, jax.tree.leaves(whole)


def write(folder: str, config: MeshConfig, order: list[int]) -> None:
    """Writes what one of several processes finds."""
    mesh = mesh_of(config, [jax.devices()[i] for i in order])
    loss, params = descended(mesh)
    rows = np.array(local_rows(mesh, ROWS))
    path = pathlib.Path(folder) / f"{jax.process_index()}.npz"
    np.savez(path, *params, loss=loss, rows=rows)
