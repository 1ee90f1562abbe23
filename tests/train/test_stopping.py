"""Runs that are asked to end: they save, say so, and end later as if nothing had been."""

import http.server
import json
import os
import signal
import socket
import threading
import time

import jax
import numpy as np
import pytest
from training import Training, command, saved_state, steps_in

from onediff_jax.cli import STOPPED
from onediff_jax.train import stopping
from onediff_jax.train.stopping import Stopping


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder with a run that was stopped, its step, and what there is of the process."""
    folder = tmp_path_factory.mktemp("runs")
    # With a worker, that gets the signal too: systemd and Slurm send it to all.
    settings = ["--config.steps=1000000", "--config.data.workers=1"]
    process = Training(folder, command(folder, "stopped", *settings))
    process.wait_for("step 3/")
    os.killpg(process.pid, signal.SIGTERM)
    process.end()
    (step,) = steps_in(folder / "stopped")
    return folder, step, process


def test_a_run_that_gets_sigterm_saves_and_ends_with_a_status_of_its_own(stopped):
    folder, step, process = stopped
    assert process.returncode == STOPPED == 75, process.errors
    assert step >= 3 and f"stopped and saved after step {step:,};" in process.said
    told = (folder / "stopped" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in told] == list(range(1, step + 1))


def test_it_resumes_and_ends_as_an_uninterrupted_run_to_the_bit(stopped):
    folder, step, _ = stopped
    steps = f"--config.steps={step + 2}"
    process = Training(folder, *(command(folder, name, steps) for name in ("whole", "stopped")))
    assert process.end() == 0, process.errors
    assert process.said.count(f"resumed after step {step:,}") == 1
    states = [saved_state(folder / name, step + 2) for name in ("stopped", "whole")]
    equal = jax.tree.map(np.array_equal, *states)
    assert all(jax.tree.leaves(equal)), equal
    assert int(states[0]["step"]) == step + 2


def test_of_two_processes_one_is_asked_and_both_save_the_same_step(stopped, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    given = command(tmp_path, "two", "--distributed", "--config.steps=1000000")
    first, second = (
        Training(
            tmp_path,
            given,
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(i),
        )
        for i in range(2)
    )
    first.wait_for("step 3/")
    second.send_signal(signal.SIGTERM)
    assert (first.end(), second.end()) == (STOPPED, STOPPED), first.errors + second.errors
    (step,) = steps_in(tmp_path / "two")
    assert f"stopped and saved after step {step:,};" in first.said
    assert int(saved_state(tmp_path / "two", step)["step"]) == step
    said = [line for line in second.said.splitlines() if line and "[Gloo]" not in line]
    assert not said  # the first one speaks for both


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_does_what_it_did_before(number):
    counted = []
    before = signal.signal(number, lambda *_: counted.append(1))
    try:
        with Stopping() as run:
            assert not run.due(1)
            os.kill(os.getpid(), number)
            assert run.due(2) and run.due(3) and not counted
            os.kill(os.getpid(), number)
            assert counted == [1]
        with Stopping() as run:
            assert not run.due(1)  # the next run is not asked
        os.kill(os.getpid(), number)
        assert counted == [1, 1]
    finally:
        signal.signal(number, before)


class Machine(http.server.BaseHTTPRequestHandler):
    """What a machine of Compute Engine says of itself."""

    values: dict[str, str] = {}

    def do_GET(self):
        value = self.values.get(self.path.removeprefix("/computeMetadata/v1/instance/"))
        known = value is not None and self.headers["Metadata-Flavor"] == "Google"
        self.send_response(200 if known else 403)
        self.end_headers()
        self.wfile.write((value or "").encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def machine(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Machine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(stopping.METADATA, f"127.0.0.1:{server.server_port}")
    Machine.values = {"maintenance-event": "NONE", "preempted": "FALSE"}
    yield Machine
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "value", "leaves"),
    [
        ("maintenance-event", "NONE", False),
        ("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE", False),  # it goes on elsewhere
        ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE", True),
        ("maintenance-event", None, False),
        ("preempted", "TRUE", True),
    ],
)
def test_a_machine_that_will_go_away_is_noticed(machine, name, value, leaves):
    machine.values = machine.values | {name: value}
    assert stopping.is_leaving() == leaves


def test_a_notice_stops_the_run_and_the_signal_that_follows_is_the_first(machine, monkeypatch):
    monkeypatch.setattr(stopping, "POLL_SECONDS", 0.01)
    with Stopping() as run:
        assert not run.due(1)
        machine.values = machine.values | {"preempted": "TRUE"}
        while not run.due(2):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)  # else it would end this process here
        assert run.due(3)


def test_a_machine_that_cannot_be_asked_stays(monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv(stopping.METADATA, f"127.0.0.1:{closed.getsockname()[1]}")
        assert not stopping.is_leaving()
