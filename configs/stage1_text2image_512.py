"""Stage 1, second part, at the released size on a v3-256: text to image at 512 px.

    python -m onediff_jax train --config configs/stage1_text2image_512.py \\
        --workdir gs://BUCKET/runs/stage1_512 --config.root=gs://BUCKET --distributed
    python -m onediff_jax plan --config configs/stage1_text2image_512.py --topology v3-256

The run starts from the weights of the first part (`tune.start`) with a fresh optimizer.  Batch
size, steps and learning rate are the paper's.

Estimated on v3-256 (2026-11-22): 3.85 GiB, 25% of a core's memory;
MFU 60.5%, 49.2% with communication (51.4% with encoders);
474 samples/s; 3.1 days.
"""

from onediff_jax.config import stage_config


def get_config():
    config = stage_config()
    config.steps = 500_000
    config.tune.start = "runs/stage1_256"
    config.data.sources.pictures = dict(kind="cache", path="caches/512/pictures")
    config.data.tasks = dict(text2image=1.0)
    config.data.row = (dict(views=1, tokens=1024),)
    return config
