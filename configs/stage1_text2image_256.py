"""Stage 1, first part, at the released size on a v3-256: text to image at 256 px.

    python -m onediff_jax train --config configs/stage1_text2image_256.py \\
        --workdir gs://BUCKET/runs/stage1_256 --config.root=gs://BUCKET --distributed
    python -m onediff_jax plan --config configs/stage1_text2image_256.py --topology v3-256

An image of 256 px has 256 tokens, too few to keep a core busy, so a row has four images: 1,024
samples per step.  The paper has 256 samples per step for 500,000 steps at a learning rate of 5e-4;
this config has the same number of samples in a quarter of the steps, at the same learning rate.
The warm-up is ours.

Estimated on v3-256 (2026-11-22): 3.83 GiB, 25% of a core's memory;
MFU 50.7%, 43.2% with communication (50.8% with encoders);
1,688 samples/s; 0.9 days.
"""

from onediff_jax.config import stage_config


def get_config():
    config = stage_config()
    config.steps = 125_000
    config.optimizer.warmup = 2000
    config.data.sources.pictures = dict(kind="cache", path="caches/256/pictures")
    config.data.tasks = dict(text2image=1.0)
    config.data.row = (dict(views=1, tokens=256, count=4),)
    return config
