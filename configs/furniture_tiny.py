"""Several views of a model, its image from words, and its depth, on rendered furniture at 32 px.

To render the 820 models (`--models 100` for fewer) and to train on two CPU cores:

    python tools/datasets/render_furniture.py --out artifacts/furniture
    python -m onediff_jax train --config configs/furniture_tiny.py --workdir runs/furniture_tiny

With --config.steps=600 and 100 models expect a velocity error of 0.311 (seed 0; docs/real_data.md).
"""

from onediff_jax.config import base_config


def get_config():
    config = base_config()
    config.steps = 20_000
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
    config.text.update(vocabulary=800, length=40)
    config.text.encoder.update(
        width=64, depth=1, heads=4, head_width=16, hidden=128, dtype="float32"
    )
    config.codec.update(factor=4)
    config.flow.update(shift=3.0)
    config.optimizer.update(
        learning_rate=3e-3, schedule="linear", warmup=200, b2=0.99, clip=1.0, ema=0.999
    )
    config.data.sources.furniture = dict(
        kind="posed", path="artifacts/furniture", depth=True, least=4, validation=8
    )
    config.data.tasks = dict(text2image=1.0, depth2image=1.0, multiview=2.0)
    config.data.counts = dict(multiview=(1.0, 0.0, 1.0, 0.0, 0.0))  # 6 views leave a gap of 2
    config.data.row = (
        dict(views=1, tokens=16, count=2),
        dict(views=2, tokens=16, count=2),
        dict(views=8, tokens=16, packed=True, tasks=("multiview",)),
    )
    config.checkpoint.update(every=2000, keep=2)
    config.log.every = 100
    config.evaluate.every = 5000
    config.evaluate.sample.update(steps=20, guidance=3.0)
    return config
