"""A profile of chosen steps, for xprof and TensorBoard."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath


class Profile:
    """Records so many steps from a first one on; for a `with` statement around the steps.

    What was recorded goes where TensorBoard looks for it: tensorboard/plugins/profile in `workdir`.
    No `steps` record nothing, and of many processes only the first records.
    """

    def __init__(self, steps: tuple[int, ...], workdir: pathlib.PurePath):
        mine = bool(steps) and jax.process_index() == 0
        self._first, self._after = (steps[0], sum(steps)) if mine else (0, 0)
        self._folder = epath.Path(workdir) / "tensorboard"
        self._recorded: tempfile.TemporaryDirectory | None = None

    @contextlib.contextmanager
    def at(self, step: int, dispatched: Any) -> Iterator[None]:
        """For the dispatch of a step; begins before the first one, ends before the one after.

        Waits for the device there; `dispatched` is what the step before returned.
        """
        if step in (self._first, self._after):
            jax.block_until_ready(dispatched)
            self._finish()
        if step == self._first:
            self._recorded = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._recorded.name)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def _finish(self) -> None:
        if not self._recorded:
            return
        jax.profiler.stop_trace()
        # Written to a local folder first: the profiler knows no object storage.
        with self._recorded as recorded:
            for file in filter(pathlib.Path.is_file, pathlib.Path(recorded).rglob("*")):
                copy = self._folder / file.relative_to(recorded)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
        self._recorded = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._finish()
