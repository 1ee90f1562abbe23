"""Runs in processes of their own, as somebody would start them, and what they leave."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
from places import ROOT, SUPPORT

CONFIG = """
import dataclasses
import ml_collections
import tiny
from onediff_jax.data.batching.loader import SlotConfig
from onediff_jax.train.config import CheckpointConfig, EvaluateConfig, LogConfig, as_dict

def get_config():
    config = tiny.tiny_config(
        checkpoint=CheckpointConfig(every=10_000),
        log=LogConfig(every=1),
        evaluate=EvaluateConfig(every=0),
    )
    one = dataclasses.replace(
        config.data, tasks={"text2image": 1.0}, row=(SlotConfig(views=1, tokens=4),)
    )
    return ml_collections.ConfigDict(as_dict(dataclasses.replace(config, data=one)))
"""


def command(folder: pathlib.Path, name: str, *settings: str) -> list[str]:
    """Arguments that train in a folder of this name."""
    (folder / "config.py").write_text(CONFIG)
    return [
        "train",
        "--config",
        f"{folder / 'config.py'}",
        "--workdir",
        f"{folder / name}",
        *settings,
    ]


class Training(subprocess.Popen):
    """A process that runs commands, started as somebody would, in a process group of its own."""

    def __init__(self, folder: pathlib.Path, *commands: list[str], **environment: str):
        program = f"import sys\nfrom onediff_jax import cli\nfor given in {commands}:\n"
        program += "    if status := cli.main(given): sys.exit(status)"
        known = dict(
            JAX_PLATFORMS="cpu",
            # The programs are tiny, and two processes must meet at their sums in one order.
            XLA_FLAGS="--xla_backend_optimization_level=0 "
            "--xla_cpu_enable_concurrency_optimized_scheduler=false",
            PYTHONPATH=os.pathsep.join([str(SUPPORT), str(ROOT)]),
            JAX_COMPILATION_CACHE_DIR=str(folder / "compiled"),  # the processes share programs
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        )
        super().__init__(
            [sys.executable, "-c", program],
            env=os.environ | known | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.said = ""

    def wait_for(self, words: str) -> None:
        """Reads what it says until a line has these words."""
        while words not in self.said.rpartition("\n")[2]:
            line = self.stdout.readline()
            assert line, self.said + self.stderr.read()
            self.said = f"{self.said}\n{line.rstrip()}"

    def end(self) -> int:
        """Its status, once it has ended."""
        out, self.errors = self.communicate(timeout=900)
        self.said += out
        return self.returncode


def steps_in(workdir: pathlib.Path) -> list[int]:
    return sorted(int(folder.name) for folder in (workdir / "checkpoints").iterdir())


def saved_state(workdir: pathlib.Path, step: int):
    """The arrays of a checkpoint, on whatever devices they were."""
    handler = ocp.PyTreeCheckpointHandler()
    folder = workdir / "checkpoints" / str(step) / "state"
    whole = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), handler.metadata(folder).tree)
    return ocp.Checkpointer(handler).restore(
        folder, args=ocp.args.PyTreeRestore(restore_args=whole)
    )
