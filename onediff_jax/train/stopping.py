"""Ends a run before its last step, after a signal or a notice that the machine will be preempted.

A process alone notes it.  Of several processes any one may be asked: JAX's coordination service,
whose signal is SIGTERM, tells the others and makes all agree on a step that none of them has taken
yet, so that they save the same state.
"""

import os
import signal
import threading
import urllib.request
from types import FrameType

import jax
from jax.experimental import multihost_utils

from onediff_jax.processes import is_joined

POLL_SECONDS = 5.0  # between two requests for a notice, which comes 30 or more before the end
# Compute Engine's metadata of a machine that will be preempted.
NOTICES = {"maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE", "preempted": "TRUE"}
METADATA = "GCE_METADATA_IP"  # address of the metadata server, as JAX reads it


class Stopping:
    """Whether the run must save and end; for a `with` statement around its steps.

    The first SIGTERM or SIGINT asks for that, the second one ends the process at once.  One of
    several processes ends at once at the second SIGINT only: a pod that goes away sends SIGTERM to
    all of them, to some while they save already.
    """

    def __init__(self):
        self._asked, self._over = False, threading.Event()
        self._before = {}

    def due(self, step: int) -> bool:
        """Whether the run ends after this step; all processes must ask at every step."""
        return multihost_utils.reached_preemption_sync_point(step) if is_joined() else self._asked

    def ask(self) -> None:
        """Asks the run to save and end."""
        self._asked = True
        if is_joined():
            os.kill(os.getpid(), signal.SIGTERM)  # which JAX handles

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT,) if is_joined() else (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._answer)
        if jax.default_backend() == "tpu" or METADATA in os.environ:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._restore()

    def _answer(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        self.ask()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _watch(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            if is_leaving():
                self.ask()
                break


def is_leaving() -> bool:
    """Whether the metadata server announces preemption; False where there is none."""
    host = os.environ.get(METADATA, "metadata.google.internal")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for name, leaving in NOTICES.items():
        url = f"http://{host}/computeMetadata/v1/instance/{name}"
        asked = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        try:
            with direct.open(asked, timeout=POLL_SECONDS) as answer:
                if answer.read().decode().strip() == leaving:
                    return True
        except OSError:
            continue
    return False
