"""Captioned images at 32 px, made from words and completed, on two CPU cores.

To fetch them and train:

    python tools/datasets/fetch_pictures.py --out artifacts/pictures
    python -m onediff_jax train --config configs/pictures_tiny.py --workdir runs/pictures_tiny

Expect a velocity error of 0.251 (seed 0; about 16 minutes on two cores of an AMD EPYC, 2026-11-22).
"""

from onediff_jax.config import base_config


def get_config():
    config = base_config()
    config.steps = 10_000
    config.rows = 2
    config.model.update(
        width=144,
        depth=4,
        heads=6,
        kv_heads=3,
        multiple_of=96,
        softcap=None,
        dtype="float32",
        attention="reference",
        unroll=4,
    )
    config.text.update(vocabulary=2000, length=40)
    config.text.encoder.update(
        width=64, depth=1, heads=4, head_width=16, hidden=128, dtype="float32"
    )
    config.codec.update(factor=4)
    config.flow.update(shift=3.0)
    config.optimizer.update(
        learning_rate=3e-3, schedule="linear", warmup=200, b2=0.99, clip=1.0, ema=0.999
    )
    config.data.sources.folder = dict(kind="folder", path="artifacts/pictures", validation=64)
    config.data.tasks = dict(text2image=1.0, image_inpainting=1.0)
    config.data.row = (
        dict(views=1, tokens=16, count=6),
        dict(views=2, tokens=16, count=3),
    )
    config.checkpoint.update(every=1000, keep=2)
    config.log.every = 100
    config.evaluate.every = 2000
    config.evaluate.sample.update(steps=20, guidance=3.0)
    return config
