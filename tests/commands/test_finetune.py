"""The shipped fine-tuning config does what it says: it trains on the images of a folder."""

import json
import os
import runpy
import subprocess
import sys

import numpy as np
import pytest
from bridge import MODEL, import_torch
from bridge import run as run_tool
from PIL import Image
from pipeline import write_release
from places import ROOT

from onediff_jax.data.batching.mixture import mixture
from onediff_jax.data.tasks.table import TASKS
from onediff_jax.errors import InputError
from onediff_jax.train.config import run_config
from onediff_jax.train.prepare import open_sources

GET_CONFIG = runpy.run_path(str(ROOT / "configs" / "finetune.py"))["get_config"]
OWN = ["canny2image", "deblurring", "image_inpainting", "super_resolution", "text2image"]
SCENES = ["depth2image", "multiview", "semanticmap2image"]
# The release that is started from is tiny.
SMALL = [
    f"--config.model.{name}={getattr(MODEL, name)}"
    for name in ("width", "depth", "heads", "kv_heads", "channels", "multiple_of")
]
FEW = ["--config.rows=2", "--config.steps=2", "--config.log.every=1", "--config.evaluate.every=0"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """30 captioned images."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    lines = []
    for i in range(30):
        pixels = rng.integers(0, 256, (rng.integers(90, 150), 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"a box, number {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def shares(images, beside="") -> list:
    config = GET_CONFIG(beside)
    config.data.sources.mine.path = str(images)
    if beside:
        config.data.sources.scenes.update(path=str(images / "scenes"), train=8, validation=4)
    config = run_config(config)
    return mixture(config.data, open_sources(config.data, "train"), config.rows)


def test_only_the_images_of_the_folder_are_trained_on(images):
    found = shares(images)
    assert [(line.task, line.source, line.records) for line in found] == [
        (task, "mine", 26) for task in OWN
    ]
    assert [line.share for line in found] == pytest.approx([1 / 8] * 4 + [1 / 2])


def test_scenes_are_asked_for_by_their_name():
    with_scenes, without = run_config(GET_CONFIG("scenes")).data, run_config(GET_CONFIG()).data
    assert set(with_scenes.tasks) - set(without.tasks) == set(SCENES)
    assert set(with_scenes.sources["scenes"].tasks) == set(SCENES)
    with pytest.raises(InputError, match="ends with 'scene'; after the colon it can be 'scenes'"):
        GET_CONFIG("scene")


@pytest.mark.slow  # renders scenes
def test_scenes_that_are_asked_for_serve_no_task_of_the_images(images):
    found = shares(images, "scenes")
    assert {line.task: line.source for line in found} == dict.fromkeys(OWN, "mine") | dict.fromkeys(
        SCENES, "scenes"
    )
    assert sum(line.share for line in found if line.source == "mine") == pytest.approx(1 / 2)


@pytest.mark.slow
def test_the_command_of_the_config_trains_on_the_images_of_a_folder(images, tmp_path):
    pytest.importorskip("transformers", reason="the released tokenizer needs the t5 extra")
    release = write_release(tmp_path / "OneDiffusion")
    assert run_tool(import_torch, source=release, out=tmp_path / "runs/released", link=True) == 0
    command = [sys.executable, "-m", "onediff_jax", "train", "--workdir", "runs/mine"]
    command += ["--config", str(ROOT / "configs" / "finetune.py"), *SMALL, *FEW]
    command += [f"--config.data.sources.mine.path={images}"]
    flags = "--xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert "source mine: 26 records with caption, image" in said
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said if "│" in line]
    assert table == [
        *([task, "mine", "12.5%", "26", "19.2"] for task in OWN[:4]),
        ["text2image", "mine", "50.0%", "26", "76.9"],
    ]
    assert "│ text2image" in (tmp_path / "runs/mine/mixture.txt").read_text()
    lines = [json.loads(line) for line in (tmp_path / "runs/mine/metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(np.isfinite(line["loss"]) for line in lines)
    trained = {name.removeprefix("loss/") for line in lines for name in line} & set(TASKS)
    assert "text2image" in trained and trained <= set(OWN)
    assert not (tmp_path / "artifacts").exists()
