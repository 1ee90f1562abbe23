"""The whole path at the smallest size: train, stop, resume, sample."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

TESTS = pathlib.Path(__file__).parent
STEPS = 6
TRAIN = """
import sys, pathlib, dataclasses
sys.path.insert(0, {tests!r})
import conftest, tiny
from onediff_jax.train import run
from onediff_jax.train.loop import train
workdir, steps, stop = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
config = tiny.tiny_config(
    steps=steps,
    checkpoint=run.CheckpointConfig(every=3, keep=2),
    log=run.LogConfig(every=1),
    evaluate=run.EvaluateConfig(every=0),
)
if stop:
    import onediff_jax.train.loop as loop
    due = loop.due
    def stopping(step, every, last):
        if step > stop:
            import os
            os._exit(9)  # killed between two steps
        return due(step, every, last)
    loop.due = stopping
train(config, workdir, {{}})
"""


def train_in_a_process(workdir: pathlib.Path, stop: int = 0) -> subprocess.CompletedProcess:
    code = TRAIN.format(tests=str(TESTS))
    environment = dict(os.environ, XLA_FLAGS="")
    command = [sys.executable, "-c", code, str(workdir), str(STEPS), str(stop)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def saved_state(workdir: pathlib.Path, step: int):
    import orbax.checkpoint as ocp

    folder = (workdir / "checkpoints" / str(step) / "state").resolve()
    return ocp.StandardCheckpointer().restore(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    whole, broken = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("broken")
    done = train_in_a_process(whole)
    assert done.returncode == 0, done.stderr
    killed = train_in_a_process(broken, stop=4)
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
