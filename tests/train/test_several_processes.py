"""Several processes of a run on one machine: what they compute, and the script that starts them."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from drawn import relative_error
from places import ROOT, SUPPORT
from stepping import ROWS, descended
from training import Training, command, saved_state, steps_in

from onediff_jax.sharding import MeshConfig, mesh_of

LAUNCH = ROOT / "launch"
PROGRAM = """
import os, sys
sys.path.insert(0, {tests!r})
from absl import flags
flags.FLAGS.mark_as_parsed()
from onediff_jax import processes
processes.join()
import jax
jax.config.update("jax_default_matmul_precision", "highest")
import stepping
from onediff_jax.sharding import MeshConfig
stepping.write(sys.argv[1], {config}, {order})
"""
# By the number of processes: the devices of each, the mesh, and the order of devices in it, such
# that every axis has neighbours in different processes.
SEVERAL = {
    2: (2, MeshConfig(fsdp=2, tensor=2, data=1), (2, 0, 3, 1)),
    4: (1, MeshConfig(data=2, sequence=2), (3, 1, 2, 0)),
}


def environment(number: int, count: int, port: int, devices: int) -> dict[str, str]:
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    flags += " --xla_cpu_enable_concurrency_optimized_scheduler=false"
    return dict(
        os.environ,
        JAX_PLATFORMS="cpu",
        XLA_FLAGS=f"{flags} --xla_force_host_platform_device_count={devices}",
        JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
        JAX_NUM_PROCESSES=str(count),
        JAX_PROCESS_ID=str(number),
    )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


def run(folder: pathlib.Path, count: int) -> list[dict[str, np.ndarray]]:
    """What each of so many processes wrote."""
    port, (devices, config, order) = free_port(), SEVERAL[count]
    command = [
        sys.executable,
        "-c",
        PROGRAM.format(tests=str(SUPPORT), config=config, order=order),
        str(folder),
    ]
    started = [
        subprocess.Popen(
            command,
            env=environment(number, count, port, devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(count)
    ]
    try:
        said = [process.communicate(timeout=600)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * count, "\n".join(said)
    return [dict(np.load(folder / f"{number}.npz")) for number in range(count)]


@pytest.fixture(scope="module")
def alone():
    return descended(mesh_of(MeshConfig(), jax.devices()[:1]))


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_give_the_loss_and_the_parameters_of_one(alone, tmp_path, count):
    loss, params = alone
    for found in run(tmp_path, count):
        assert found["loss"] == pytest.approx(loss, rel=1e-5)
        errors = [relative_error(found[f"arr_{i}"], true) for i, true in enumerate(params)]
        assert max(errors) < 1e-5
        if count == 2:  # every device works on other rows, or on other heads of the same
            assert found["rows"].tolist() == list(range(ROWS))
    if count == 4:  # processes 3 and 1 are the first row of the mesh, and share rows by tokens
        halves = list(range(ROWS // 2)), list(range(ROWS // 2, ROWS))
        held = [np.load(tmp_path / f"{number}.npz")["rows"].tolist() for number in range(count)]
        assert held == [halves[1], halves[0], halves[1], halves[0]]


# The script, with a stand-in for the program.

PYTHON = """#!/usr/bin/env bash
[[ $PLAN != waiting ]] || trap 'echo saving; exit 75' TERM
echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS: $*"
case $PLAN in
  failing) [[ $JAX_PROCESS_ID != 1 ]] || exit 3; exec sleep 60 ;;
  waiting) while true; do sleep 0.05; done ;;
esac
"""


@pytest.fixture
def script(tmp_path):
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    shutil.copytree(LAUNCH, tmp_path / "launch")

    def start(plan: str, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [str(tmp_path / "launch/processes.sh"), *arguments],
            env=dict(os.environ, PLAN=plan),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_the_script_starts_every_process_with_its_number_and_prefixes_what_it_says(script):
    started = script("done", "3", "--", "train", "--config", "a b.py")
    said, _ = started.communicate(timeout=60)
    lines = sorted(said.splitlines())
    address = lines[0].split(" at ")[1].split(": ")[0]
    assert address.startswith("localhost:") and started.returncode == 0
    assert lines == [
        f"[{i}] {i} of 3 at {address}: -m onediff_jax train --distributed --config a b.py"
        for i in range(3)
    ]


def test_when_one_process_fails_the_others_are_stopped_with_a_message(script):
    began = time.monotonic()
    started = script("failing", "3", "--", "train")
    _, said = started.communicate(timeout=50)
    assert "process 1 ended with status 3; the others are stopped" in said
    assert started.returncode == 3 and time.monotonic() - began < 50


def test_a_request_to_end_reaches_every_process_and_waits_for_them(script):
    started = script("waiting", "2", "--", "train")
    first = [started.stdout.readline() for _ in range(2)]
    assert all("of 2" in line for line in first)
    started.send_signal(signal.SIGTERM)
    said, message = started.communicate(timeout=50)
    assert sorted(said.splitlines()) == ["[0] saving", "[1] saving"]
    assert started.returncode == 75 and message == ""


# The script, with the program.


@pytest.mark.slow
def test_two_processes_that_are_stopped_and_go_on_end_as_one_that_is_not(
    script, tmp_path, monkeypatch
):
    flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count="
    python = tmp_path / ".venv/bin/python"
    python.write_text(f'#!/usr/bin/env bash\nexec {sys.executable} "$@"\n')
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SUPPORT), str(ROOT)]))
    monkeypatch.setenv("XLA_FLAGS", f"{flags}1")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))

    def train(name: str, steps: int) -> list[str]:
        return command(tmp_path, name, f"--config.steps={steps}", "--config.mesh.fsdp=2")

    started, said = script("", "2", "--", *train("two", 1_000_000)), ""
    while "step 3/" not in said:
        said = started.stdout.readline()
        assert said, started.communicate()
    started.send_signal(signal.SIGTERM)
    said, message = started.communicate(timeout=600)
    (step,) = steps_in(tmp_path / "two")
    assert started.returncode == 75, said + message
    assert f"[0] stopped and saved after step {step:,};" in said
    resumed = script("", "2", "--", *train("two", step + 2))
    said, message = resumed.communicate(timeout=600)
    assert resumed.returncode == 0 and f"resumed after step {step:,}" in said, said + message

    # Alone it has the two devices, so that even sums have the order of those of two processes.
    alone = Training(tmp_path, train("one", step + 2), XLA_FLAGS=f"{flags}2")
    assert alone.end() == 0, alone.errors
    states = [saved_state(tmp_path / name, step + 2) for name in ("one", "two")]
    equal = jax.tree.map(np.array_equal, *states)
    assert all(jax.tree.leaves(equal)), equal
    told = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("one", "two")]
    one, two = ([json.loads(line) for line in lines.splitlines()] for lines in told)
    assert [line["step"] for line in two] == list(range(1, step + 3))
    assert [line["loss"] for line in two] == [line["loss"] for line in one]


@pytest.mark.parametrize("arguments", [(), ("2",), ("0", "--", "train"), ("2", "train", "--x")])
def test_a_wrong_call_of_the_script_is_answered_with_its_usage(script, arguments):
    started = script("done", *arguments)
    _, said = started.communicate(timeout=50)
    assert started.returncode == 2 and said.startswith("usage: launch/processes.sh NUMBER -- ")
