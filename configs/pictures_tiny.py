"""Text to image and inpainting on captioned images at 32 px, on two CPU cores.

Fetches the images and trains:

    python tools/datasets/fetch_pictures.py --out artifacts/pictures
    python -m onediff_jax train --config configs/pictures_tiny.py --workdir runs/pictures_tiny

Expect a velocity error of 0.251 (seed 0; about 16 minutes on two cores of an AMD EPYC, 2026-11-22).
"""

from onediff_jax.config import small_config


def get_config():
    config = small_config()
    config.steps = 10_000
    config.rows = 2
    config.text.update(vocabulary=2000, length=40)
    config.data.sources.folder = dict(kind="folder", path="artifacts/pictures", validation=64)
    config.data.tasks = dict(text2image=1.0, image_inpainting=1.0)
    config.data.row = (
        dict(views=1, tokens=16, count=6),
        dict(views=2, tokens=16, count=3),
    )
    config.checkpoint.every = 1000
    config.evaluate.every = 2000
    return config
