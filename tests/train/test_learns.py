"""Learning itself, in under a minute: a small model overfits eight examples."""

import dataclasses

import jax
import numpy as np
from tiny import Blobs, BlobSettings, tiny_config

from onediff_jax.data.batching import loader
from onediff_jax.evaluate.held_out import complete
from onediff_jax.evaluate.scores import psnr_inside
from onediff_jax.ops.flow import FlowConfig
from onediff_jax.sampling.generate import SampleConfig, TrainedModel
from onediff_jax.train.compile import compiled_step, first_state
from onediff_jax.train.prepare import prepare
from onediff_jax.train.state import OptimizerConfig

STEPS = 400
FACTOR = 4.0  # by which the loss falls, at least
CLOSER = 3.0  # dB by which a made depth image is nearer to its own truth than to any other


def test_eight_examples_are_learned_and_their_depth_is_made_from_their_images():
    config = tiny_config(
        steps=STEPS,
        flow=FlowConfig(shift=1.0),
        optimizer=OptimizerConfig(
            learning_rate=1e-2, warmup=20, schedule="linear", clip=1.0, ema=0.98
        ),
    )
    data = dataclasses.replace(
        config.data,
        sources={"blobs": BlobSettings(count=8)},
        tasks={"depth2image": 1.0},
        row=(loader.SlotConfig(views=2, tokens=10, count=2),),
        prompt_dropout=0.0,
    )
    model = dataclasses.replace(config.model, width=48, channels=12)
    config = dataclasses.replace(config, data=data, model=model, rows=4)
    run = prepare(config, devices=jax.devices()[:1])
    compiled, rows, networks = compiled_step(run), run.rows, run.networks
    state, losses = first_state(compiled, config), []
    for batch in loader.batches(rows, config.rows, range(config.rows), 0, STEPS):
        state, metrics = compiled.step(state, batch, jax.random.key(1), {})
        losses.append(metrics["loss"].total)
    losses = np.array(jax.device_get(losses))
    assert losses[:5].mean() > FACTOR * losses[-50:].mean()

    trained = TrainedModel(networks, state.ema, run.assets.codec, run.tokenizer)
    indices = [i for i in range(8) if i % 3 == 0]  # of one size
    completed = complete(
        trained,
        Blobs(8),
        indices,
        "depth2image",
        2,
        ("depth",),
        10,
        config.data.conditions,
        SampleConfig(steps=10, guidance=1.0),
        seed=0,
    )
    whole = np.ones(completed[0].example.views[1].shape[:2], bool)
    for c in completed:
        own = psnr_inside(c.generated["depth"], c.example.views[1], whole)
        others = [o.example.views[1] for o in completed if o is not c]
        assert own > CLOSER + max(
            psnr_inside(c.generated["depth"], other, whole) for other in others
        )
