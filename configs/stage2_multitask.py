"""Stage 2 at the released size on a v3-256: all tasks, text to image at 512 px, others at 256 px.

    python -m onediff_jax train --config configs/stage2_multitask.py \\
        --workdir gs://BUCKET/runs/stage2 --config.root=gs://BUCKET --distributed
    python -m onediff_jax plan --config configs/stage2_multitask.py --topology v3-256

The three kinds of task of the paper have equal numbers of samples (supplement, section 10).  A row
of 6,144 tokens has

    2 x 1,024 tokens         2 samples     text to image at 512 px
    2 x (2 x 256)            2 samples     ten tasks with a condition, and subject_driven with one
                                           reference; deblurring and super-resolution half as
                                           often as each of the others
    12 x 256, packed         1.96 samples on average:
        multiview            five eighths  4, 6, 8, 10 or 12 views, equally often: 2 to 6 images,
                                           each with its camera
        faceid               three eighths 2, 3 or 4 views, equally often: 1 to 3 references

A step has 1,526 samples.  The paper has 256 samples per step for 1,000,000 steps, which is as many
samples as 168,000 steps of this config; the learning rate is the paper's.  How tasks share a slot
is our choice.  The run starts from the weights of stage 1 with a fresh optimizer.

Estimated on v3-256 (2026-11-28): 12.99 GiB, 84% of a core's memory;
MFU 57.0%, 55.5% with communication (58.5% with encoders);
498 samples/s; 6.0 days.
"""

from onediff_jax.config import stage_config


def get_config():
    config = stage_config()
    config.steps = 168_000
    config.tune.start = "runs/stage1_512"
    sources = (
        "pictures_512",
        "pictures_256",
        "edits_256",
        "people_256",
        "things_256",
        "scenes_256",
    )
    for name in sources:
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
        subject_driven=1.0,
    )
    several = dict(multiview=5.0, faceid=3.0)
    config.data.tasks = dict(text2image=1.0) | pairs | several
    # Shares of the numbers of views that an example can have, smallest first.  With 5 to 3 of the
    # tasks that share the packed slot, each of its numbers of views is equally often: a slot that
    # is full has at most four examples, and few prompts to attend to.
    config.data.counts = dict(multiview=(1.0,) * 5, faceid=(1.0,) * 3, subject_driven=(1.0,))
    config.data.row = (
        dict(views=1, tokens=1024, count=2, tasks=("text2image",)),
        dict(views=2, tokens=256, count=2, tasks=tuple(pairs)),
        dict(views=12, tokens=256, packed=True, tasks=tuple(several)),
    )
    return config
