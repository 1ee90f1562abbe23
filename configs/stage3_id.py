"""Stage 3 at the released size on a v3-256: images of one person, 2 to 5 views.

    python -m onediff_jax train --config configs/stage3_id.py \\
        --workdir gs://BUCKET/runs/stage3_id --config.root=gs://BUCKET --distributed
    python -m onediff_jax plan --config configs/stage3_id.py --topology v3-256

As in the paper, examples of 2 and 3 views have 512 px, those of 4 and 5 views 256 px.  A row has
one example of each: 1,024 samples per step.  The run starts from the weights of stage 2 with a
fresh optimizer.  The paper states neither steps nor learning rate of this stage; these are ours.

Estimated on v3-256 (2026-11-22): 13.46 GiB, 87% of a core's memory;
MFU 58.7%, 57.1% with communication (58.4% with encoders);
289 samples/s; 0.4 days.
"""

from onediff_jax.config import stage_config


def get_config():
    config = stage_config()
    config.steps = 10_000
    config.tune.start = "runs/stage2"
    config.mesh.fsdp = 128
    config.optimizer.learning_rate = 1e-4
    config.data.sources.people = dict(kind="cache", path="caches/stage3/people")
    config.data.tasks = dict(faceid=1.0)
    config.data.row = (
        dict(views=2, tokens=1024),
        dict(views=3, tokens=1024),
        dict(views=4, tokens=256),
        dict(views=5, tokens=256),
    )
    return config
