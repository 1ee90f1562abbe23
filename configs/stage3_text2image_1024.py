"""Stage 3 at the released size on a v3-256: text to image at 1024 px.

    python -m onediff_jax train --config configs/stage3_text2image_1024.py \\
        --workdir gs://BUCKET/runs/stage3_1024 --config.root=gs://BUCKET --distributed
    python -m onediff_jax plan --config configs/stage3_text2image_1024.py --topology v3-256

The run starts from the weights of stage 2 with a fresh optimizer.  The paper states neither steps
nor learning rate of this stage; these are ours.

Estimated on v3-256 (2026-11-22): 8.80 GiB, 57% of a core's memory;
MFU 59.0%, 56.5% with communication (57.1% with encoders);
120 samples/s; 0.7 days.
"""

from onediff_jax.config import stage_config


def get_config():
    config = stage_config()
    config.steps = 30_000
    config.tune.start = "runs/stage2"
    config.optimizer.learning_rate = 1e-4
    config.data.sources.pictures = dict(kind="cache", path="caches/1024/pictures")
    config.data.tasks = dict(text2image=1.0)
    config.data.row = (dict(views=1, tokens=4096),)
    return config
