"""The processes of a run: how they find each other, and their names in messages."""

import os
import platform

import jax
import numpy as np
from jax.experimental import multihost_utils

from onediff_jax.errors import InputError

VARIABLES = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join() -> None:
    """Makes this process one of several, before it touches a device.

    A TPU pod, Slurm, Open MPI and Kubernetes say by themselves who the others are.  Elsewhere three
    variables do: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID.  Raises InputError where nothing says it.
    """
    try:
        count, number = (
            int(os.environ[name]) if name in os.environ else None for name in VARIABLES
        )
        jax.distributed.initialize(num_processes=count, process_id=number)
    except ValueError as error:
        raise InputError(
            f"--distributed finds no other processes ({error}); start them by a script of launch/, "
            f"or set JAX_COORDINATOR_ADDRESS, {' and '.join(VARIABLES)} for each."
        ) from error


def is_joined() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized()


def is_first() -> bool:
    """Whether this process prints and writes for all."""
    return jax.process_index() == 0


def sum_over_processes(counts: np.ndarray) -> np.ndarray:
    """The sum of what all processes give; all of them must call it at the same step."""
    if jax.process_count() == 1:
        return counts
    return multihost_utils.process_allgather(counts).sum(0)


def name_of_process() -> str:
    """The name of this process: "process 3 of 32 on HOST"."""
    host = platform.node()
    try:
        return f"process {jax.process_index()} of {jax.process_count()} on {host}"
    except RuntimeError:  # there are no devices to count
        return f"a process on {host}"
