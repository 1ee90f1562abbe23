import io
import json
import math
import struct
import time
import types

import numpy as np
import pytest
import rich.console
import rich.text
from PIL import Image

from onediff_jax.train import writer as writer_module
from onediff_jax.train.writer import RunWriter, duration, short, with_prefix

VALUES = {"loss": 0.412, "views_per_second": 1830.4, "flops_per_second": 5.51e13, "grad_norm": 1.5}


def console(*, terminal: bool, width: int = 120) -> rich.console.Console:
    environment = {"TERM": "xterm-256color"}
    return rich.console.Console(
        file=io.StringIO(), force_terminal=terminal, width=width, _environ=environment
    )


def shown(console: rich.console.Console) -> str:
    return console.file.getvalue()


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir):
    """All TensorBoard events of a run in order: each is length, checksum, message, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted((workdir / "tensorboard").glob("*tfevents*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def values_by_tag(workdir):
    found = {}
    for event in events(workdir):
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value))
    return found


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until its `now` is moved."""
    clock = types.SimpleNamespace(now=1000.0)
    fake = types.SimpleNamespace(monotonic=lambda: clock.now, time_ns=time.time_ns)
    monkeypatch.setattr(writer_module, "time", fake)
    return clock


def test_each_call_of_scalars_is_one_line_that_is_on_disk_at_once(tmp_path):
    with RunWriter(tmp_path, 0, 10, console=console(terminal=False)) as writer:
        writer.scalars(0, VALUES)
        assert records(tmp_path) == [{"step": 0, **VALUES}]
        writer.scalars(5, {"loss": np.float32(0.5), "tokens": 7})
        assert records(tmp_path)[1:] == [{"step": 5, "loss": 0.5, "tokens": 7.0}]


def test_a_run_that_resumes_replaces_what_an_interrupted_one_wrote_past_its_checkpoint(tmp_path):
    with RunWriter(tmp_path, 0, 100, console=console(terminal=False)) as writer:
        for step in (0, 10, 20, 30):
            writer.scalars(step, {"loss": 1.0})
    with RunWriter(tmp_path, 20, 100, console=console(terminal=False)) as writer:
        assert [record["step"] for record in records(tmp_path)] == [0, 10]
        for step in (20, 30, 40):
            writer.scalars(step, {"loss": 2.0})
    assert [(record["step"], record["loss"]) for record in records(tmp_path)] == [
        (0, 1.0), (10, 1.0), (20, 2.0), (30, 2.0), (40, 2.0)
    ]  # fmt: skip
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize(
    "end", ['{"step": 20, "lo', '{"step": 2', '{"step": 15, "loss": 1.0}', "7\n"]
)
def test_a_half_written_last_line_is_dropped_and_a_whole_one_is_kept(tmp_path, end):
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "loss": 1.0}\n' + end)
    with RunWriter(tmp_path, 50, 100, console=console(terminal=False)) as writer:
        writer.scalars(50, {"loss": 2.0})
    kept = [10, 15, 50] if end.endswith("}") else [10, 50]
    assert [record["step"] for record in records(tmp_path)] == kept


def test_nan_and_infinity_are_null_in_the_file_and_told_on_the_console(tmp_path):
    plain = console(terminal=False)
    with RunWriter(tmp_path, 0, 10, console=plain) as writer:
        writer.scalars(3, {"loss": math.nan, "grad_norm": math.inf})
        writer.scalars(3, {"evaluate/psnr": math.inf})
    assert records(tmp_path)[0] == {"step": 3, "loss": None, "grad_norm": None}
    assert shown(plain) == "step 3/10  loss nan\nstep 3/10  evaluate/psnr inf\n"
    ((_, loss),) = values_by_tag(tmp_path)["loss"]
    assert math.isnan(loss.simple_value)


def test_tensorboard_reads_back_every_tag_at_its_step(tmp_path):
    grouped = {"loss": 0.5, "loss/text2image": 0.25, "loss/sigma_0.3": 0.75}
    with RunWriter(tmp_path, 0, 10, console=console(terminal=False)) as writer:
        writer.text("config", "seed = 1\n  steps = 2")
        for step in (0, 4):
            writer.scalars(step, grouped)
    found = values_by_tag(tmp_path)
    for tag, x in grouped.items():
        assert [(step, value.simple_value) for step, value in found[tag]] == [(0, x), (4, x)]
    ((_, text),) = found["config/text_summary"]
    assert text.tensor.string_val == [b"    seed = 1\n      steps = 2\n"]
    assert (tmp_path / "config.txt").read_text() == "seed = 1\n  steps = 2"


def test_tensorboard_is_told_where_a_resumed_run_starts_even_within_the_same_second(tmp_path):
    for first_step in (0, 20):
        with RunWriter(tmp_path, first_step, 100, console=console(terminal=False)) as writer:
            writer.scalars(first_step + 10, {"loss": 1.0})
    starts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert starts == [0, 20]
    assert [step for step, _ in values_by_tag(tmp_path)["loss"]] == [10, 30]


def test_images_are_on_disk_and_in_tensorboard_pixel_for_pixel(tmp_path):
    grid = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    with RunWriter(tmp_path, 0, 2000, console=console(terminal=False)) as writer:
        path = writer.images(1200, "samples/depth2image", grid)
    assert path == tmp_path / "pictures" / "samples" / "depth2image_0001200.png"
    assert np.array_equal(np.asarray(Image.open(path)), grid)
    ((step, value),) = values_by_tag(tmp_path)["samples/depth2image"]
    image = value.image
    assert (step, image.height, image.width, image.colorspace) == (1200, 6, 9, 3)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(image.encoded_image_string))), grid)


def test_without_a_terminal_each_report_is_one_plain_line(tmp_path, clock):
    plain = console(terminal=False, width=40)  # narrower than the lines, which are not broken
    with RunWriter(tmp_path, 1000, 9000, console=plain) as writer:
        writer.line(
            "[[depth2image]] has [bold]4[/bold] sources :smile: and a line longer than the width"
        )
        writer.advance(1000)
        writer.scalars(1000, VALUES)
        for step in range(1001, 1201):
            clock.now += 0.0323
            writer.advance(step)
        writer.scalars(1200, VALUES)
        writer.scalars(1200, {"evaluate/psnr": 21.34, "evaluate/steps": 1234})
        writer.scalars(1250, VALUES | {"mfu": 0.412, "mfu_with_encoders": 0.412})
        writer.scalars(1250, VALUES | {"mfu": 0.412, "mfu_with_encoders": 0.43})
    assert shown(plain).splitlines() == [
        "[[depth2image]] has [bold]4[/bold] sources :smile: and a line longer than the width",
        "step 1,000/9,000  loss 0.412  1,830 views/s  55.1 TFLOP/s",
        "step 1,200/9,000  loss 0.412  1,830 views/s  55.1 TFLOP/s  4:12 left",
        "step 1,200/9,000  evaluate/psnr 21.3  evaluate/steps 1,234",
        "step 1,250/9,000  loss 0.412  1,830 views/s  41.2% MFU  3:21 left",
        "step 1,250/9,000  loss 0.412  1,830 views/s  41.2% MFU, 43.0% with encoders  3:21 left",
    ]


def test_time_left_counts_neither_earlier_runs_nor_compilation(tmp_path, clock):
    plain = console(terminal=False)
    with RunWriter(tmp_path, 5000, 10000, console=plain) as writer:
        clock.now += 600  # the first step compiles
        writer.advance(5000)
        clock.now += 100
        writer.scalars(5100, {"loss": 1.0})  # a second a step
        for step in range(5200, 10000, 50):  # then a tenth
            clock.now += 5
            writer.scalars(step, {"loss": 1.0})
    lines = shown(plain).splitlines()
    assert lines[0].endswith("  1:21:40 left")
    assert lines[-1] == "step 9,950/10,000  loss 1.00  0:06 left"


def test_on_a_terminal_a_bar_moves_and_lines_stay_above_it(tmp_path, clock):
    terminal = console(terminal=True)
    with RunWriter(tmp_path, 0, 9000, console=terminal) as writer:
        writer.advance(0)
        writer.scalars(0, VALUES)
        clock.now += 36
        writer.advance(1200)
        writer.scalars(1200, VALUES)
        writer.line("saved step 1,200")
    text = rich.text.Text.from_ansi(shown(terminal)).plain
    assert "\x1b[?25l" in shown(terminal) and shown(terminal).rstrip().endswith("\x1b[?25h")
    last = text[text.index("saved step 1,200") :]
    for part in ("1,200/9,000", "13%", "loss 0.412  1,830 views/s  55.1 TFLOP/s", " 03:54", "━"):
        assert part in last
    assert "step 1,200/9,000" not in text  # reports are in the bar, not in lines


def test_a_quiet_writer_writes_and_shows_nothing(tmp_path):
    terminal, workdir = console(terminal=True), tmp_path / "run"
    with RunWriter(workdir, 0, 10, quiet=True, console=terminal) as writer:
        writer.advance(1)
        writer.scalars(1, VALUES)
        writer.line("hello")
        writer.text("config", "seed = 1")
        path = writer.images(1, "samples", np.zeros((2, 2, 3), np.uint8))
    writer.close()
    assert path == workdir / "pictures" / "samples_0000001.png"
    assert not workdir.exists() and shown(terminal) == ""


def test_a_run_that_fails_leaves_its_records_and_the_terminal_in_order(tmp_path):
    terminal = console(terminal=True)
    with pytest.raises(KeyboardInterrupt), RunWriter(tmp_path, 0, 10, console=terminal) as writer:
        writer.scalars(1, VALUES)
        raise KeyboardInterrupt
    writer.close()  # again
    assert shown(terminal).rstrip().endswith("\x1b[?25h")  # the cursor is back
    assert [step for step, _ in values_by_tag(tmp_path)["loss"]] == [1]


def test_numbers_are_written_for_people():
    assert [short(x) for x in (0.4, 12.345, 99.96, 1830.0, -0.5, 1e-5, math.nan)] == [
        "0.400", "12.3", "100", "1,830", "-0.500", "1.00e-05", "nan"
    ]  # fmt: skip
    assert [with_prefix(x) for x in (830.0, 999.6, 55.1e9, 9.996e11, 1.2e18)] == [
        "830 ", "1.00 k", "55.1 G", "1.00 T", "1,200 P"
    ]  # fmt: skip
    assert [duration(x) for x in (-1.0, 59.6, 252.0, 11052.0, 183852.0)] == [
        "0:00", "1:00", "4:12", "3:04:12", "2d 03:04:12"
    ]  # fmt: skip
