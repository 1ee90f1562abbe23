"""Many views at the released size on a v3-256: scenes in 6 pictures of 512 px, or 12 of 256 px.

    python -m onediff_jax train --config configs/stage3_multiview.py \\
        --workdir runs/stage3_multiview --distributed
    python -m onediff_jax plan --config configs/stage3_multiview.py --topology v3-256

Every picture has its camera as a view of its own, so that these are 12 and 24 views.  The paper
trains on 2 to 6 pictures of 256 px in stage 2 and has no such stage: this one shows that longer
rows fit, with all of a block but what attention gives made again for the backward pass.  Weights
are those of stage 2.

Estimated on v3-256 (2026-11-23): 13.74 GiB, 89% of a core's memory;
MFU 46.5%, 46.2% with communication (46.3% with encoders);
35 samples/s; 1.7 days.
"""

from onediff_jax.config import base_config


def get_config():
    config = base_config()
    config.steps = 10_000
    config.rows = 256
    config.tune.start = "runs/stage2"
    config.remat = "attended"
    config.mesh.update(data=-1, fsdp=128)
    config.text.update(kind="t5", path="weights/onediffusion")
    config.codec.update(kind="sd3_vae", path="weights/onediffusion")
    config.optimizer.update(learning_rate=1e-4, warmup=1000)
    config.data.sources.scenes = dict(kind="cache", path="caches/stage3/scenes")
    config.data.tasks = dict(multiview=1.0)
    config.data.row = (dict(views=12, tokens=1024), dict(views=24, tokens=256))
    config.checkpoint.update(every=1000, keep=3)
    config.evaluate.every = 0  # caches hold no pictures to judge samples by
    return config
