"""Where the files of `configs/` begin: the defaults, and what several of them have in common."""

import ml_collections

from onediff_jax.train.config import base_config

__all__ = ["base_config", "small_config", "stage_config"]


def small_config() -> ml_collections.ConfigDict:
    """A run for two CPU cores: 1.5 million parameters, images of 32 px in 16 tokens.

    A file adds sources, tasks, the row, steps, and how often it saves and evaluates.
    """
    config = base_config()
    config.model.update(width=144, depth=4, heads=6, kv_heads=3, multiple_of=96, softcap=None)
    config.model.update(dtype="float32", attention="reference", unroll=4)
    config.text.encoder.update(
        width=64, depth=1, heads=4, head_width=16, hidden=128, dtype="float32"
    )
    config.codec.update(factor=4)
    config.flow.update(shift=3.0)
    config.optimizer.update(
        learning_rate=3e-3, schedule="linear", warmup=200, b2=0.99, clip=1.0, ema=0.999
    )
    config.log.every = 100
    config.checkpoint.keep = 2
    config.evaluate.sample.update(steps=20, guidance=3.0)
    return config


def stage_config() -> ml_collections.ConfigDict:
    """A stage of training at the released size on a v3-256, with T5-XL inside the step.

    A file adds sources, tasks, the row, steps, and where it starts from.
    """
    config = base_config()
    config.rows = 256
    config.remat = "dots"
    config.mesh.update(data=-1, fsdp=32)
    config.text.update(kind="t5", path="weights/onediffusion")
    config.codec.update(kind="sd3_vae", path="weights/onediffusion")
    config.optimizer.update(learning_rate=5e-4, warmup=1000)
    config.checkpoint.update(every=1000, keep=3)
    config.evaluate.update(every=1000, rows=256, grids=10)
    config.evaluate.sample.update(steps=50, guidance=4.0)
    return config
