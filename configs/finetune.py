"""Fine-tunes the released weights on your own images.

Import the released folder, then train on one GPU:

    python -m onediff_jax import_torch --source OneDiffusion --out runs/released --link
    launch/local.sh train --config configs/finetune.py --workdir runs/mine \
        --config.data.sources.mine.path=DIR

DIR is an image folder with captions (docs/data.md) and the only source.  Its images serve text to
image, deblurring, inpainting, super-resolution and Canny edges at 512 px; no other task is trained.
The run prints the share of every task and the number of epochs in 1,000 steps.

The model may forget tasks that are not trained.  To keep depth, semantic maps and several views,
add built-in scenes, which serve only these three tasks, at 256 px:

    --config configs/finetune.py:scenes

Memory of one device according to the TPU compiler (2026-11-28; docs/finetune.md has the command
and the parts), and the memory of a GPU that suffices:

    the defaults                                                    65.1 GiB    80 GB
    --config.optimizer.mu_dtype=bfloat16
        --config.optimizer.ema_dtype=bfloat16                       54.7 GiB    80 GB
    --config.optimizer.kind=adafactor --config.optimizer.ema=0
        --config.remat=full                                         30.7 GiB    48 GB
    --config.model.lora.rank=16 --config.tune.train="('*/lora_?',)"
        --config.tune.frozen_dtype=bfloat16 --config.remat=full
        --config.optimizer.learning_rate=1e-4                        9.5 GiB    24 GB

launch/local.sh lets JAX use 95 % of a GPU's memory instead of 75 %.  No GPU has run this config
yet.  docs/finetune.md has more, including the export to PyTorch.
"""

from onediff_jax.config import base_config
from onediff_jax.errors import InputError


def get_config(beside=""):
    if beside not in ("", "scenes"):
        raise InputError(f"--config ends with {beside!r}; after the colon it can be 'scenes'.")
    config = base_config()
    config.steps = 5_000
    config.rows = 1
    config.remat = "dots"
    config.tune.start = "runs/released"
    config.text.update(kind="t5", path="runs/released", length=300)
    config.codec.update(kind="sd3_vae", path="runs/released")
    config.flow.update(shift=3.0)
    config.optimizer.update(learning_rate=1e-5, warmup=200, clip=1.0, accumulate=1, ema=0.999)
    config.data.sources.mine = dict(
        kind="folder",
        path="",
        validation=4,  # for held-out loss and sample grids; 0: neither, train on all images
    )
    made = ("deblurring", "image_inpainting", "super_resolution", "canny2image")
    config.data.tasks = dict(text2image=1.0) | dict.fromkeys(made, 1.0)
    config.data.row = (
        dict(views=1, tokens=1024, tasks=("text2image",)),
        dict(views=2, tokens=1024, tasks=made),
    )
    config.data.aspects = "square"  # encoded inside the step; a cache can hold any aspect
    if beside:
        known = ("depth2image", "semanticmap2image")
        config.data.sources.scenes = dict(
            kind="scenes",
            path="artifacts/scenes_full_256",
            content="full",
            size=256,
            train=500,
            validation=16,
            views=4,
            seed=0,
            tasks=(*known, "multiview"),
        )
        config.data.tasks.update(dict.fromkeys((*known, "multiview"), 1.0))
        config.data.row += (
            dict(views=2, tokens=256, tasks=known),
            dict(views=4, tokens=256, tasks=("multiview",)),
        )
    config.checkpoint.update(every=1000, keep=2)
    config.log.every = 20
    config.evaluate.every = 1000
    config.evaluate.sample.update(steps=50, guidance=4.0)
    return config
