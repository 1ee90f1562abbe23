"""Stage 3 at the released size on a v3-256: multiview at 512 px, scenes in 3, 4 or 5 images.

    python -m onediff_jax train --config configs/stage3_multiview.py \\
        --workdir gs://BUCKET/runs/stage3_multiview --config.root=gs://BUCKET --distributed
    python -m onediff_jax plan --config configs/stage3_multiview.py --topology v3-256

Every image has its camera as another view, so an example has 6, 8 or 10 views, equally often (the
released demo: trained with 3 images of 512 px, works for 2 to 5).  A packed slot of 16 views has
two examples, 10 + 6 or 8 + 8 views: 512 samples per step.  Blocks are recomputed for the backward
pass, except the output of attention.  The run starts from the weights of stage 2.

Estimated on v3-256 (2026-11-28): 12.52 GiB, 81% of a core's memory;
MFU 43.3%, 43.0% with communication (43.2% with encoders);
30 samples/s; 2.0 days.
"""

from onediff_jax.config import stage_config


def get_config():
    config = stage_config()
    config.steps = 10_000
    config.tune.start = "runs/stage2"
    config.remat = "attended"
    config.mesh.fsdp = 128
    config.optimizer.learning_rate = 1e-4
    config.data.sources.scenes = dict(kind="cache", path="caches/stage3/scenes")
    config.data.tasks = dict(multiview=1.0)
    config.data.counts = dict(multiview=(0.0, 1.0, 1.0, 1.0))  # shares of 4, 6, 8, 10 views
    config.data.row = (dict(views=16, tokens=1024, packed=True),)
    return config
