"""Stage 1, first part, at the released size on a v3-256: text to image at 256 px.

    python -m onediff_jax train --config configs/stage1_text2image_256.py \\
        --workdir gs://BUCKET/runs/stage1_256 --config.root=gs://BUCKET --distributed
    python -m onediff_jax plan --config configs/stage1_text2image_256.py --topology v3-256

An image of 256 px has 256 tokens, too few to keep a core busy, so a row has four: 1,024 samples a
step.  The paper has 256 for 500,000 steps at a rate of 5e-4; this is as many samples in a quarter
of the steps, at the same rate.  The warm-up is ours.

Estimated on v3-256 (2026-11-22): 3.83 GiB, 25% of a core's memory;
MFU 50.7%, 43.2% with communication (50.8% with encoders);
1,688 samples/s; 0.9 days.
"""

from onediff_jax.config import base_config


def get_config():
    config = base_config()
    config.steps = 125_000
    config.rows = 256
    config.remat = "dots"
    config.mesh.update(data=-1, fsdp=32)
    config.text.update(kind="t5", path="weights/onediffusion")
    config.codec.update(kind="sd3_vae", path="weights/onediffusion")
    config.optimizer.update(learning_rate=5e-4, warmup=2000)
    config.data.sources.pictures = dict(kind="cache", path="caches/256/pictures")
    config.data.tasks = dict(text2image=1.0)
    config.data.row = (dict(views=1, tokens=256, count=4),)
    config.checkpoint.update(every=1000, keep=3)
    config.evaluate.update(every=1000, rows=256, grids=10)
    config.evaluate.sample.update(steps=50, guidance=4.0)
    return config
