"""Thirteen tasks at once on the built-in scenes at 32 px, about an hour on two CPU cores.

    python -m onediff_jax train --config configs/scenes_all.py --workdir runs/scenes_all

Expect a velocity error of 0.275 (seed 0) and the grids of docs/scenes_all.md.
"""

from onediff_jax.config import small_config


def get_config():
    config = small_config()
    config.steps = 20_000
    config.rows = 1
    config.text.update(vocabulary=1024, length=64)
    scenes = dict(
        kind="scenes",
        path="artifacts/scenes_full_32",
        content="full",
        size=32,
        train=10_000,
        validation=500,
        views=4,
        seed=0,
    )
    config.data.sources.figures = scenes | dict(groups="figures")
    config.data.sources.objects = scenes | dict(groups="objects")
    config.data.tasks = dict(
        text2image=2.0,
        deblurring=0.5,
        image_inpainting=1.0,
        super_resolution=0.5,
        canny2image=1.0,
        depth2image=1.0,
        pose2image=1.0,
        semanticmap2image=1.0,
        boundingbox2image=1.0,
        image_editing=1.0,
        faceid=1.0,
        subject_driven=1.0,
        multiview=2.0,
    )
    # Every 6 views leave a gap of 2, and so do 3 + 3.
    config.data.counts = dict(faceid=(2.0, 1.0, 1.0, 0.0), subject_driven=(2.0, 1.0, 1.0, 0.0))
    config.data.counts.multiview = (1.0, 1.0, 1.0, 0.0, 0.0)
    config.data.conditions.map_colors = "fixed"
    config.data.row = (
        dict(views=1, tokens=16, count=4),
        dict(views=2, tokens=16, count=8),
        dict(views=8, tokens=16, packed=True, tasks=("faceid", "subject_driven", "multiview")),
    )
    config.checkpoint.every = 2000
    config.log.every = 200
    config.evaluate.every = 5000
    config.evaluate.sample.update(steps=30, guidance=3.0)
    return config
