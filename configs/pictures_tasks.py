"""Eight tasks at once on captioned images, their masks and their subjects, at 32 px.

Fetches the images (and adds annotations to a folder without them) and trains on two CPU cores:

    python tools/datasets/fetch_pictures.py --out artifacts/pictures
    python -m onediff_jax train --config configs/pictures_tasks.py --workdir runs/pictures_tasks

With --config.steps=600 expect a velocity error of 0.470 (seed 0; docs/real_data.md).
"""

from onediff_jax.config import small_config


def get_config():
    config = small_config()
    config.steps = 20_000
    config.rows = 1
    config.text.update(vocabulary=2000, length=64)
    config.data.sources.annotated = dict(
        kind="coco",
        path="artifacts/pictures",
        instances="instances.json",
        captions="captions.json",
        validation=64,
    )
    config.data.sources.subjects = dict(
        kind="identities",
        path="artifacts/pictures/subjects",
        subjects="thing",
        least=4,
        validation=8,
    )
    config.data.tasks = dict(
        text2image=2.0,
        deblurring=0.5,
        image_inpainting=1.0,
        super_resolution=0.5,
        canny2image=1.0,
        semanticmap2image=1.0,
        boundingbox2image=1.0,
        subject_driven=2.0,
    )
    config.data.counts = dict(subject_driven=(1.0, 1.0, 1.0, 0.0))
    config.data.conditions.map_colors = "fixed"
    config.data.row = (
        dict(views=1, tokens=16, count=4),
        dict(views=2, tokens=16, count=6),
        dict(views=6, tokens=16, packed=True, tasks=("subject_driven",)),
    )
    config.checkpoint.every = 2000
    config.evaluate.every = 5000
    return config
