"""Stage 3 at the released size on a v3-256: text to image at 1024 px.

    python -m onediff_jax train --config configs/stage3_text2image_1024.py \\
        --workdir gs://BUCKET/runs/stage3_1024 --config.root=gs://BUCKET --distributed
    python -m onediff_jax plan --config configs/stage3_text2image_1024.py --topology v3-256

Weights are those of stage 2, the optimizer is fresh.  The paper states neither steps nor rate of
this stage; these are ours.

Estimated on v3-256 (2026-11-22): 8.80 GiB, 57% of a core's memory;
MFU 59.0%, 56.5% with communication (57.1% with encoders);
120 samples/s; 0.7 days.
"""

from onediff_jax.config import base_config


def get_config():
    config = base_config()
    config.steps = 30_000
    config.rows = 256
    config.tune.start = "runs/stage2"
    config.remat = "dots"
    config.mesh.update(data=-1, fsdp=32)
    config.text.update(kind="t5", path="weights/onediffusion")
    config.codec.update(kind="sd3_vae", path="weights/onediffusion")
    config.optimizer.update(learning_rate=1e-4, warmup=1000)
    config.data.sources.pictures = dict(kind="cache", path="caches/1024/pictures")
    config.data.tasks = dict(text2image=1.0)
    config.data.row = (dict(views=1, tokens=4096),)
    config.checkpoint.update(every=1000, keep=3)
    config.evaluate.update(every=1000, rows=256, grids=10)
    config.evaluate.sample.update(steps=50, guidance=4.0)
    return config
