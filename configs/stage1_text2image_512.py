"""Stage 1, second part, at the released size on a v3-256: text to image at 512 px.

    python -m onediff_jax train --config configs/stage1_text2image_512.py \\
        --workdir gs://BUCKET/runs/stage1_512 --config.root=gs://BUCKET --distributed
    python -m onediff_jax plan --config configs/stage1_text2image_512.py --topology v3-256

It goes on from the weights of the first part (`tune.start`) with a fresh optimizer.  Batch, steps
and rate are the paper's.

Estimated on v3-256 (2026-11-22): 3.85 GiB, 25% of a core's memory;
MFU 60.5%, 49.2% with communication (51.4% with encoders);
474 samples/s; 3.1 days.
"""

from onediff_jax.config import base_config


def get_config():
    config = base_config()
    config.steps = 500_000
    config.rows = 256
    config.tune.start = "runs/stage1_256"
    config.remat = "dots"
    config.mesh.update(data=-1, fsdp=32)
    config.text.update(kind="t5", path="weights/onediffusion")
    config.codec.update(kind="sd3_vae", path="weights/onediffusion")
    config.optimizer.update(learning_rate=5e-4, warmup=1000)
    config.data.sources.pictures = dict(kind="cache", path="caches/512/pictures")
    config.data.tasks = dict(text2image=1.0)
    config.data.row = (dict(views=1, tokens=1024),)
    config.checkpoint.update(every=1000, keep=3)
    config.evaluate.update(every=1000, rows=256, grids=10)
    config.evaluate.sample.update(steps=50, guidance=4.0)
    return config
