"""Low-rank adapters from built-in scenes to captioned images at 32 px, a trial of fine-tuning.

The base is the run of configs/scenes_all.py.  On two CPU cores:

    python tools/datasets/fetch_pictures.py --out artifacts/pictures
    python -m onediff_jax train --config configs/pictures_lora.py --workdir runs/pictures_lora

To train all parameters instead, add --config.model.lora.rank=0 --config.tune.train="('*',)"
--config.optimizer.learning_rate=5e-4.  docs/finetune.md has the results.
"""

from onediff_jax.config import small_config


def get_config():
    config = small_config()
    config.steps = 1500
    config.rows = 1
    config.model.lora.update(
        rank=16, alpha=16.0, targets=("wq", "wk", "wv", "wk_y", "wv_y", "wo", "w1", "w2", "w3")
    )
    config.text.update(vocabulary=1024, length=64)
    config.tune.update(start="runs/scenes_all", train=("*/lora_?",))
    config.optimizer.update(learning_rate=2e-3, schedule="constant", warmup=100, b2=0.999, ema=0.99)
    config.data.sources.pictures = dict(
        kind="coco",
        path="artifacts/pictures",
        instances="instances.json",
        captions="captions.json",
        validation=64,
    )
    config.data.tasks = dict(
        text2image=2.0,
        deblurring=1.0,
        image_inpainting=1.0,
        super_resolution=1.0,
        semanticmap2image=1.0,
        boundingbox2image=1.0,
    )
    config.data.conditions.map_colors = "fixed"
    config.data.row = (dict(views=1, tokens=16, count=4), dict(views=2, tokens=16, count=10))
    config.checkpoint.update(every=500, keep=1)
    config.evaluate.every = 1500
    config.evaluate.examples = 6
    config.evaluate.sample.update(steps=30, guidance=3.0)
    return config
