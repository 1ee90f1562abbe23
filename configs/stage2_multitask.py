"""Stage 2 at the released size on a v3-256: all tasks, words to image at 512 px, others at 256.

    python -m onediff_jax train --config configs/stage2_multitask.py \\
        --workdir runs/stage2 --distributed
    python -m onediff_jax plan --config configs/stage2_multitask.py --topology v3-256

A row gives 1,024 tokens to each of three kinds of task: words to a picture, picture to picture,
and several views.  It has four examples: 1,024 samples a step, where the paper has 256 for
1,000,000 steps; this is as many samples in a quarter of the steps, at the paper's rate.  Weights
are those of stage 1, the optimizer is fresh.  How tasks share a slot is ours.

Estimated on v3-256 (2026-11-22): 7.46 GiB, 48% of a core's memory;
MFU 60.1%, 56.5% with communication (59.8% with encoders);
730 samples/s; 4.1 days.
"""

from onediff_jax.config import base_config


def get_config():
    config = base_config()
    config.steps = 250_000
    config.rows = 256
    config.tune.start = "runs/stage1_512"
    config.remat = "dots"
    config.mesh.update(data=-1, fsdp=32)
    config.text.update(kind="t5", path="weights/onediffusion")
    config.codec.update(kind="sd3_vae", path="weights/onediffusion")
    config.optimizer.update(learning_rate=5e-4, warmup=1000)
    for name in ("pictures_512", "pictures_256", "edits_256", "people_256", "scenes_256"):
        config.data.sources[name] = dict(kind="cache", path=f"caches/stage2/{name}")
    pairs = dict(
        deblurring=0.5,
        image_inpainting=1.0,
        super_resolution=0.5,
        canny2image=1.0,
        depth2image=1.0,
        hed2image=1.0,
        pose2image=1.0,
        semanticmap2image=1.0,
        boundingbox2image=1.0,
        image_editing=1.0,
    )
    sets = dict(faceid=1.0, subject_driven=1.0, multiview=2.0)
    config.data.tasks = dict(text2image=1.0) | pairs | sets
    config.data.row = (
        dict(views=1, tokens=1024, tasks=("text2image",)),
        dict(views=2, tokens=256, count=2, tasks=tuple(pairs)),
        dict(views=4, tokens=256, tasks=tuple(sets)),
    )
    config.checkpoint.update(every=1000, keep=3)
    config.evaluate.every = 0  # caches hold no pictures to judge samples by
    return config
