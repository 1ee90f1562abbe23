"""Where a training run reports: metrics.jsonl, TensorBoard, images, and the console.

    metrics.jsonl            one line per call of `scalars`: {"step": 1200, "loss": 0.412, ...}
    tensorboard/             the same; tags are the names as given, grouped at the slash
    pictures/NAME_STEP.png
    NAME.txt

In object storage they appear when a run ends, and until then every minute.

After a resume, log lines past the last checkpoint are overwritten, so each step appears once.
"""

import io
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import SupportsFloat

import numpy as np
import rich.console
import rich.progress
import rich.table
import rich.text
from jaxtyping import UInt8
from PIL import Image

from onediff_jax.train.storage import StagedFolder

PACE = 600.0  # seconds whose steps, at most 1,000, say how long the rest takes


class RunWriter:
    """Writes a run's metrics, images and texts, and shows how far it is.  For a `with` statement.

    The caller numbers the steps; `first_step` and `last_step` are the first and the last number
    that this process will write.  Records of `first_step` and later, of an interrupted
    run, are removed.  On a terminal the console shows a progress bar; elsewhere (a file, a pipe) a
    plain line per call of `scalars`.  Of many processes all but one pass `quiet`, which makes every
    method do nothing.
    """

    def __init__(
        self,
        workdir: pathlib.PurePath,
        first_step: int,
        last_step: int,
        *,
        quiet: bool = False,
        console: rich.console.Console | None = None,
    ):
        self.workdir, self.quiet = workdir, quiet
        self.first_step, self.last_step = first_step, last_step
        if quiet:
            return

        import tensorboardX

        self._staged = StagedFolder(workdir)
        local = self._local = self._staged.local
        local.mkdir(parents=True, exist_ok=True)
        self._staged.fetch("metrics.jsonl")
        keep_steps_before(local / "metrics.jsonl", first_step)
        self._metrics = (local / "metrics.jsonl").open("a", encoding="utf-8")
        self._tensorboard = tensorboardX.SummaryWriter(
            str(local / "tensorboard"),
            purge_step=first_step,
            flush_secs=10,
            # Else the name is the host and the second, and a quick restart overwrites the file.
            filename_suffix=f".{time.time_ns()}",
        )
        self._console = console or rich.console.Console()
        self._shows_bar = self._console.is_interactive
        self._bar = progress_bar(self._console, disable=not self._shows_bar)
        self._bar.start()
        done = first_step - 1
        self._bar.add_task("", total=last_step, completed=done, headline="first step ...")

    def scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Records named numbers of one step, and shows the headline: loss and speed.

        Numbers without any of `loss`, `views_per_second`, `flops_per_second` and `mfu` (a fraction)
        are something else, such as an evaluation, and shown in a line of their own; parts of a
        number, such as a/b/c of a/b, are not shown.
        """
        if self.quiet:
            return
        numbers = {name: float(value) for name, value in values.items()}
        # JSON has neither NaN nor infinity.
        finite = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        self._metrics.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
        self._metrics.flush()
        self._add_summary(step, [{"tag": name, "simple_value": x} for name, x in numbers.items()])
        self._staged.copy()

        at, headline = f"step {step:,}/{self.last_step:,}", headline_of(numbers)
        if not headline:
            whole = {n: x for n, x in numbers.items() if n.rpartition("/")[0] not in numbers}
            self.line("  ".join([at, *(f"{name} {short(x)}" for name, x in whole.items())]))
            return
        self.advance(step)
        (task,) = self._bar.tasks
        self._bar.update(task.id, headline=headline)
        if not self._shows_bar:
            left = task.time_remaining
            self.line("  ".join([at, headline] + ([f"{duration(left)} left"] if left else [])))

    def images(self, step: int, name: str, grid: UInt8[np.ndarray, "h w 3"]) -> pathlib.PurePath:
        """Returns pictures/NAME_STEP.png, written unless quiet; TensorBoard gets the same bytes."""
        path = pathlib.PurePath("pictures", f"{name}_{step:07d}.png")
        if not self.quiet:
            file = io.BytesIO()
            Image.fromarray(grid).save(file, format="PNG")
            png, (height, width, _) = file.getvalue(), grid.shape
            replace_file(self._local / path, png)
            image = dict(height=height, width=width, colorspace=3, encoded_image_string=png)
            self._add_summary(step, [{"tag": name, "image": image}])
        return self.workdir / path

    def text(self, name: str, text: str) -> None:
        """Writes NAME.txt, and the same as preformatted text to TensorBoard."""
        if self.quiet:
            return
        replace_file(self._local / f"{name}.txt", text.encode())
        # TensorBoard reads Markdown, where an indented line is shown as it stands.
        indented = "".join(f"    {line}\n" for line in text.splitlines())
        self._tensorboard.add_text(name, indented, self.first_step)

    def line(self, message: str) -> None:
        """Shows a line as given, above the progress bar if there is one."""
        if not self.quiet:
            # A Text is not searched for markup ("[depth2image]" is no style).  Only a terminal
            # needs its lines broken.
            self._console.print(rich.text.Text(message), soft_wrap=not self._shows_bar)

    def table(self, name: str, table: rich.table.Table) -> None:
        """Shows a table, and records it as `text` does."""
        if not self.quiet:
            plain = rich.console.Console(file=io.StringIO(), width=100)
            plain.print(table)
            self.text(name, plain.file.getvalue())
            self._console.print(table)

    def advance(self, step: int) -> None:
        """Moves the progress bar to `step`, which is done.  Costs microseconds."""
        if not self.quiet:
            self._bar.update(self._bar.task_ids[0], completed=step)

    def close(self) -> None:
        """Puts everything on disk and gives the terminal back.  A second call does nothing."""
        if self.quiet:
            return
        self._bar.stop()
        self._metrics.close()
        self._tensorboard.close()
        self._staged.close()

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _add_summary(self, step: int, values: list[dict[str, object]]) -> None:
        """One event for all values; `add_scalar` would make one for each and warn of every NaN."""
        from tensorboardX.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(**value) for value in values])
        self._tensorboard.file_writer.add_summary(summary, step)


def keep_steps_before(path: pathlib.Path, step: int) -> None:
    """Drops the records of `step` and later from a JSONL file, and what a kill left unfinished."""
    if path.exists():
        text = path.read_text(encoding="utf-8", errors="replace")
        kept = "".join(f"{line}\n" for line in text.splitlines() if recorded_step(line) < step)
        if kept != text:
            replace_file(path, kept.encode())


def recorded_step(line: str) -> float:
    """The step of a line of metrics.jsonl; infinity if the line is not a whole record."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def replace_file(path: pathlib.Path, content: bytes) -> None:
    """Writes a file that readers find with its old content or its new, never with half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def progress_bar(console: rich.console.Console, disable: bool) -> rich.progress.Progress:
    """Bar, step/last, percent, headline, time elapsed (where there is room for it), time left."""
    text = rich.progress.TextColumn
    columns = [
        rich.progress.BarColumn(bar_width=None),
        text("{task.completed:,.0f}/{task.total:,.0f}", style="progress.download"),
        text("{task.percentage:.0f}%", style="progress.percentage"),
        text("{task.fields[headline]}", markup=False),
        *([rich.progress.TimeElapsedColumn()] if console.width >= 90 else []),
        rich.progress.TimeRemainingColumn(compact=True),
    ]
    return rich.progress.Progress(
        *columns,
        console=console,
        refresh_per_second=4,
        expand=True,
        disable=disable,
        speed_estimate_period=PACE,
        get_time=lambda: time.monotonic(),
    )


def headline_of(values: Mapping[str, float]) -> str:
    """Loss and speed, "loss 0.412  1,830 views/s  55.1 TFLOP/s".

    Where the devices' peak is known, "41.2% MFU" instead of FLOP/s, and of what pretrained encoders
    add to it, "41.2% MFU, 43.0% with encoders".
    """
    parts = []
    if "loss" in values:
        parts.append(f"loss {short(values['loss'])}")
    if "views_per_second" in values:
        parts.append(f"{short(values['views_per_second'])} views/s")
    if "mfu" in values:
        said, with_encoders = (
            f"{short(100 * values['mfu'])}% MFU",
            values.get("mfu_with_encoders", 0),
        )
        if with_encoders > values["mfu"]:
            said += f", {short(100 * with_encoders)}% with encoders"
        parts.append(said)
    elif "flops_per_second" in values:
        parts.append(f"{with_prefix(values['flops_per_second'])}FLOP/s")
    return "  ".join(parts)


def short(x: float) -> str:
    """Three significant digits, or all before the point: 0.412, 41.2, 1,830, 1.00e-05, nan."""
    return f"{x:,.0f}" if 99.95 <= abs(x) < 1e9 else f"{x:#.3g}"


def with_prefix(x: float) -> str:
    """Three significant digits and a unit's prefix: "55.1 T" for 5.51e13, "830 " for 830."""
    for exponent, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if 999.5 * 10 ** (exponent - 3) <= abs(x):
            return f"{short(x / 10**exponent)} {prefix}"
    return f"{short(x)} "


def duration(seconds: int | float) -> str:
    """Seconds as 4:12, 3:04:12 or 2d 03:04:12."""
    minutes, second = divmod(round(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}:{second:02}"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
