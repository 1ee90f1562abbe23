"""Multiview, text to image and depth on rendered furniture at 32 px.

Renders the 820 models (`--models 100` for fewer) and trains on two CPU cores:

    python tools/datasets/render_furniture.py --out artifacts/furniture
    python -m onediff_jax train --config configs/furniture_tiny.py --workdir runs/furniture_tiny

With --config.steps=600 and 100 models expect a velocity error of 0.311 (seed 0; docs/real_data.md).
"""

from onediff_jax.config import small_config


def get_config():
    config = small_config()
    config.steps = 20_000
    config.rows = 2
    config.text.update(vocabulary=800, length=40)
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
    config.checkpoint.every = 2000
    config.evaluate.every = 5000
    return config
