"""The whole path at the smallest size: train, stop, resume, sample."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from places import SUPPORT
from tiny import Blobs, tiny_config
from training import saved_state

from onediff_jax import cli
from onediff_jax.data.batching.settings import DataConfig, SlotConfig, tokens_of, views_of_tasks
from onediff_jax.data.tasks.table import TASKS
from onediff_jax.data.text import UNKNOWN, Tokenizer
from onediff_jax.errors import InputError
from onediff_jax.train.assets import fitted_assets
from onediff_jax.train.restore import restore_model

STEPS = 6
QUICK = "--xla_backend_optimization_level=0"  # to compile; the programs are tiny
SOME = ("text2image", "depth2image", "image_inpainting", "multiview")
TRAIN = """
import dataclasses, os, pathlib, sys, time
sys.path.insert(0, {tests!r})
from absl import flags
flags.FLAGS.mark_as_parsed()
import tiny
import onediff_jax.train.loop as loop
from onediff_jax.train.config import CheckpointConfig, EvaluateConfig, LogConfig, SampleConfig

workdir, steps, kill_after, grids = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:])
config = tiny.tiny_config(
    steps=steps,
    checkpoint=CheckpointConfig(every=3, keep=2),
    log=LogConfig(every=1),
    evaluate=EvaluateConfig(
        every=grids, rows=0, examples=2, sample=SampleConfig(steps=2)
    ),
)
some = {{task: 1.0 for task in {tasks!r}}}
config = dataclasses.replace(config, data=dataclasses.replace(config.data, tasks=some))
intervals = loop.intervals
def killing(config):
    if killing.step == kill_after:
        while not (workdir / "checkpoints" / "3").exists():  # written behind the loop's back
            time.sleep(0.01)
        os._exit(9)
    killing.step += 1
    return intervals(config)
killing.step = 1
if kill_after:
    loop.intervals = killing
loop.train(config, workdir)
"""


class Captioned(Blobs):
    """Images with a second caption, whose letters the first lacks."""

    def __getitem__(self, index):
        record = super().__getitem__(index)
        return record | {"caption": (record["caption"], "Ω Ψ")}


def test_a_vocabulary_is_built_on_all_captions():
    config = tiny_config(seed=0)
    for source, known in ((Blobs(4), False), (Captioned(4), True)):
        assets = fitted_assets(config, {"blobs": source})
        found = Tokenizer(assets.vocabulary, 12).pieces("ΩΨ")
        assert (UNKNOWN not in found) == known


def test_a_task_has_the_tokens_of_the_slot_that_has_its_views():
    """A cache holds no examples of one slot's views with another's tokens."""
    slots = SlotConfig(6, 16), SlotConfig(4, 64), SlotConfig(1, 4)
    data = DataConfig(tasks={"multiview": 1.0, "text2image": 1.0}, row=slots)
    assert views_of_tasks(data) == {"multiview": 4, "text2image": 1}
    assert tokens_of(data, "multiview") == 64 and tokens_of(data, "text2image") == 4


def train_in_a_process(workdir: pathlib.Path, kill_after: int = 0, grids: int = 0):
    """Trains on one device, as somebody would; `kill_after` ends it like a lost machine."""
    environment = dict(
        os.environ,
        JAX_PLATFORMS="cpu",
        XLA_FLAGS=QUICK,
        JAX_COMPILATION_CACHE_DIR=str(workdir.parent / "compiled"),  # the processes share programs
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )
    arguments = [str(workdir), str(STEPS), str(kill_after), str(grids)]
    command = [sys.executable, "-c", TRAIN.format(tests=str(SUPPORT), tasks=SOME), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    whole, broken = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("broken")
    done = train_in_a_process(whole, grids=STEPS)
    assert done.returncode == 0, done.stderr
    killed = train_in_a_process(broken, kill_after=5)
    assert killed.returncode == 9, killed.stderr
    resumed = train_in_a_process(broken)
    assert resumed.returncode == 0, resumed.stderr
    return whole, broken, resumed.stdout


def test_a_killed_and_resumed_run_ends_as_an_unbroken_one_to_the_bit(runs):
    whole, broken, said = runs
    assert "resumed after step 3" in said
    states = [saved_state(folder, STEPS) for folder in (whole, broken)]
    assert int(states[0]["step"]) == STEPS
    equal = jax.tree.map(lambda a, b: np.array_equal(a, b), *states)
    assert all(jax.tree.leaves(equal)), equal
    moved = jax.tree.map(lambda a, b: np.array_equal(a, b), saved_state(whole, 3), states[0])
    assert not any(jax.tree.leaves(moved["params"]))


def test_every_step_is_told_once_and_equals_that_of_the_unbroken_run(runs):
    told = []
    for folder in runs[:2]:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        told.append({entry["step"]: entry["loss"] for entry in map(json.loads, lines)})
        assert len(lines) == STEPS
    assert told[0] == told[1] and sorted(told[0]) == list(range(1, STEPS + 1))


def test_only_the_set_number_of_checkpoints_is_kept_and_none_is_half_written(runs):
    for folder in runs[:2]:
        assert {f.name for f in (folder / "checkpoints").iterdir()} == {"3", "6"}


def test_an_unfinished_checkpoint_is_not_the_newest(runs, tmp_path):
    from onediff_jax.train.checkpoint import step_folder

    folder = runs[0] / "checkpoints"
    (folder / "9.orbax-checkpoint-tmp-1").mkdir()
    assert step_folder(runs[0]).name == "6"
    (folder / "9.orbax-checkpoint-tmp-1").rmdir()


def test_the_run_leaves_its_parameter_table(runs):
    assert "denoiser/layers/attention/wq/kernel" in (runs[0] / "parameters.txt").read_text()


def test_a_grid_is_drawn_for_every_task_and_direction(runs):
    names = {file.name for file in (runs[0] / "pictures").iterdir()}
    assert names == {
        f"{task}_to_{view}_0000006.png"
        for task in SOME
        for view, _ in TASKS[task].builder.directions(TASKS[task].builder.counts[0])
    }


def test_a_workdir_or_one_step_can_be_sampled_from_with_its_averaged_parameters(runs):
    newest, first = restore_model(runs[0]), restore_model(runs[0] / "checkpoints" / "3")
    assert (newest.step, first.step) == (6, 3)
    assert newest.config == first.config
    saved = saved_state(runs[0], 6)
    equal = jax.tree.map(np.array_equal, newest.trained.params, saved["ema"])
    assert all(jax.tree.leaves(equal))


def test_samples_are_written_from_files_for_every_direction(runs, tmp_path, capsys):
    image = tmp_path / "given.png"
    Image.fromarray(Blobs()[0]["image"]).save(image)
    scaled = ["--negative=a house", "--noise_scale=2", "--scale_factor=1.2", "--shift=2"]
    for task, given, made in [
        ("text2image", scaled, "image"),
        ("depth2image", ["--given", f"depth={image}"], "image"),
        ("depth2image", ["--given", f"image={image}"], "depth"),
        ("image_inpainting", ["--given", f"masked={image}"], "image"),
    ]:
        out = tmp_path / f"{task}_{made}"
        arguments = ["--checkpoint", runs[0], "--task", task, "--out", out, "--num=2", "--steps=2"]
        arguments += ["--prompt", "a small box", *given]
        assert cli.main(["sample", *map(str, arguments)]) == 0, capsys.readouterr().err
        names = sorted(file.name for file in out.iterdir())
        assert names == [f"{task}_{made}_0_000.png", f"{task}_{made}_0_001.png"]
        assert np.asarray(Image.open(out / names[0])).ndim == 3


def test_recovered_cameras_keep_a_focal_length_that_is_given(runs, tmp_path):
    image = tmp_path / "given.png"
    Image.fromarray(Blobs()[0]["image"]).save(image)
    arguments = ["--checkpoint", runs[0], "--task", "multiview", "--out", tmp_path / "out"]
    arguments += ["--given", f"image_0={image}", "--given", f"image_1={image}"]
    arguments += ["--steps=2", "--size=8x12", "--focal=1.5"]
    assert cli.main(["sample", *map(str, arguments)]) == 0
    (file,) = (tmp_path / "out").iterdir()
    cameras = json.loads(file.read_text())
    assert [*cameras] == ["ray_0", "ray_1"]
    for camera in cameras.values():
        assert camera["intrinsics"] == [[18, 0, 6], [0, 18, 4], [0, 0, 1]]


def test_a_foreign_folder_is_not_taken_for_a_checkpoint(runs, tmp_path, capsys):
    (tmp_path / "3" / "state").mkdir(parents=True)
    out = tmp_path / "out"
    arguments = ["sample", "--checkpoint", tmp_path, "--task", "text2image", "--out", out]
    assert cli.main([str(a) for a in arguments]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "not a complete checkpoint" in said and not out.exists()


def test_what_changed_since_a_checkpoint_is_told_or_refused(runs):
    from onediff_jax.train.checkpoint import Checkpoints

    config = restore_model(runs[0]).config
    with Checkpoints(runs[0], config.checkpoint) as checkpoints:
        assert checkpoints.changes(6, config) == {}
        longer = dataclasses.replace(config, steps=9)
        assert checkpoints.changes(6, longer) == {"steps": (6, 9)}
        wider = dataclasses.replace(config, model=dataclasses.replace(config.model, width=48))
        with pytest.raises(InputError, match="model.width is 48, and 24 in the checkpoint"):
            checkpoints.changes(6, wider)
