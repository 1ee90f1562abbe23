"""Where the time of a run goes, by the host's clock; and a profile of chosen steps.

Steps are dispatched asynchronously, and nothing here waits for the device.  Unattributed wall time
counts as `steps`:

    start    before the first step: sources, codec, vocabulary, first or restored state
    compile  the first step's call, which returns once its program is there
    data     waits for a batch at whose end the device had nothing left to do.  A wait that the
             device worked through costs nothing; of one that it did not, the idle part is unknown
             and all of it counts: an upper bound
    save     until the state may be overwritten, and at the end until the last one is written
    evaluate the loss of held-out examples, its compilation included
    sample   grids, their compilation included

The loop waits for the device before it saves, evaluates or samples, so that steps under way are
not counted as any of these.
"""

import contextlib
import pathlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath

from onediff_jax.train import metrics
from onediff_jax.train.writer import duration

CATEGORIES = ("start", "compile", "data", "save", "evaluate", "sample")


class Clock:
    """Wall time of a run by category, from when the clock is created."""

    def __init__(self):
        self._began = time.perf_counter()
        self._spent = dict.fromkeys(CATEGORIES, 0.0)
        self._told = dict(self._spent)
        self._compiled = False

    def begin(self, done: int, views: int, flops: metrics.StepFlops) -> None:
        """Ends the start: from here on steps are taken, each of so many views and FLOPs."""
        self._reported = time.perf_counter()
        self._spent["start"] = self._reported - self._began
        self._step, self._views, self._flops = done, views, flops

    @contextlib.contextmanager
    def counting(self, other: str) -> Iterator[None]:
        """Counts the time inside the statement as `other`."""
        start = time.perf_counter()
        yield
        self._spent[other] += time.perf_counter() - start

    def dispatching(self) -> contextlib.AbstractContextManager:
        """Counts the time inside as compiling the first time, and then as steps."""
        first, self._compiled = not self._compiled, True
        return self.counting("compile") if first else contextlib.nullcontext()

    @contextlib.contextmanager
    def waiting(self, dispatched: Any) -> Iterator[None]:
        """Counts the time inside as waiting for data, unless the device worked all through it.

        `dispatched` is what the step that was dispatched last returns.
        """
        start = time.perf_counter()
        yield
        if all(array.is_ready() for array in jax.tree.leaves(dispatched)):
            self._spent["data"] += time.perf_counter() - start

    def report(self, step: int) -> dict[str, float]:
        """Speeds and shares of time since the last report.

        Views and the model's FLOPs per second; where the devices' peak is known, `mfu`, the model's
        share of it, and `mfu_with_encoders`, with the forward passes of pretrained encoders inside
        the step; and time/steps, time/data, ...: shares that add up to one.
        """
        now = time.perf_counter()
        seconds, rate = now - self._reported, (step - self._step) / (now - self._reported)
        spent = {other: self._spent[other] - self._told[other] for other in CATEGORIES[1:]}
        self._step, self._reported, self._told = step, now, dict(self._spent)
        model, total = self._flops.model * rate, self._flops.total * rate
        speeds = {"views_per_second": self._views * rate, "flops_per_second": model}
        if peak := metrics.peak_flops():
            speeds |= {"mfu": model / peak, "mfu_with_encoders": total / peak}
        shares = time_shares(seconds, spent)
        return speeds | {f"time/{name}": share for name, share in shares.items()}

    def summary(self) -> str:
        """One line: where all the time went."""
        seconds = time.perf_counter() - self._began
        shares = time_shares(seconds, self._spent).items()
        parts = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares)
        return f"where {duration(seconds)} went: {parts}"


def time_shares(seconds: float, spent: Mapping[str, float]) -> dict[str, float]:
    """The shares of so many seconds that went to steps, and to what else seconds were spent on."""
    steps = seconds - sum(spent.values())
    return {name: part / seconds for name, part in {"steps": steps, **spent}.items()}


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
