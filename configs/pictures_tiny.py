"""Captioned pictures at 64 px, made and inpainted, on two CPU cores.

To train:

    python -m onediff_jax train --config configs/pictures_tiny.py --workdir runs/pictures_tiny
"""

from onediff_jax.config import base_config


def get_config():
    config = base_config()
    config.steps = 6000
    config.rows = 8
    config.model.update(
        width=144,
        depth=4,
        heads=6,
        kv_heads=3,
        multiple_of=96,
        softcap=None,
        dtype="float32",
        attention="reference",
    )
    config.text.update(vocabulary=512, length=40)
    config.text.encoder.update(width=64, depth=2, heads=4, head_width=16, hidden=128)
    config.codec.update(factor=4)
    config.flow.update(shift=1.0)
    config.optimizer.update(learning_rate=3e-3, schedule="linear", warmup=200, clip=1.0, ema=0.999)
    config.data.sources.folder = dict(kind="folder", path="artifacts/pictures", validation=64)
    config.data.tasks = dict(text2image=1.0, image_inpainting=1.0)
    config.data.row = (
        dict(views=1, tokens=64, count=2),
        dict(views=2, tokens=64, count=1),
    )
    config.checkpoint.update(every=1000, keep=2)
    config.log.every = 100
    config.evaluate.every = 2000
    config.evaluate.sample.update(steps=20, guidance=3.0)
    return config
