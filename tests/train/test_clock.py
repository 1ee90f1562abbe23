"""Where time goes: every second is counted once, and waits that cost nothing are not counted."""

import types

import pytest

from onediff_jax.train import clock as clock_module
from onediff_jax.train.clock import Clock
from onediff_jax.train.metrics import StepFlops

FLOPS = StepFlops({"denoiser": 500}, {"text encoder": 60, "autoencoder": 40})


class Array:
    """Stands for a result of the device: there, or not yet."""

    def __init__(self, ready: bool):
        self.ready = ready

    def is_ready(self) -> bool:
        return self.ready


@pytest.fixture
def now(monkeypatch):
    """Seconds that pass when `now.pass_` says so, and not else."""
    now = types.SimpleNamespace(time=50.0)

    def pass_(seconds: float) -> None:
        now.time += seconds

    now.pass_ = pass_
    monkeypatch.setattr(clock_module, "time", types.SimpleNamespace(perf_counter=lambda: now.time))
    monkeypatch.setattr(clock_module.metrics, "peak_flops", lambda: 4000.0)
    return now


def run(clock: Clock, now, steps: int) -> None:
    """Steps of 2 seconds each, of which the host sees nothing when it dispatches them."""
    for _ in range(steps):
        with clock.waiting(Array(ready=False)):
            now.pass_(0.5)  # the device works meanwhile
        with clock.dispatching():
            now.pass_(0.1)
        now.pass_(1.4)


def test_shares_say_what_every_second_went_to_and_add_up_to_one(now):
    clock = Clock()
    now.pass_(10)
    clock.begin(100, views=6, flops=FLOPS)
    with clock.waiting(None):
        now.pass_(1)
    with clock.dispatching():
        now.pass_(5)
    now.pass_(4)
    report = clock.report(101)
    shares = {name: share for name, share in report.items() if name.startswith("time/")}
    assert shares == pytest.approx(
        {
            "time/steps": 0.4,
            "time/compile": 0.5,
            "time/data": 0.1,
            "time/save": 0.0,
            "time/evaluate": 0.0,
            "time/sample": 0.0,
        }
    )
    with clock.counting("save"):
        now.pass_(2)
    with clock.counting("evaluate"):
        now.pass_(1)
    with clock.counting("sample"):
        now.pass_(2)
    with clock.dispatching():
        now.pass_(15)  # is a step's: the program is there
    report = clock.report(111)
    assert sum(v for name, v in report.items() if name.startswith("time/")) == pytest.approx(1)
    others = [report[f"time/{name}"] for name in ("save", "evaluate", "sample")]
    assert others == pytest.approx([0.1, 0.05, 0.1])
    assert report["time/compile"] == report["time/data"] == 0  # of this report alone
    assert clock.summary() == (
        "where 0:40 went: steps 47.5 %, start 25.0 %, compile 12.5 %, data 2.5 %, save 5.0 %, "
        "evaluate 2.5 %, sample 5.0 %"
    )


def test_speeds_count_all_seconds_since_the_last_report(now):
    clock = Clock()
    clock.begin(7, views=6, flops=FLOPS)
    run(clock, now, 4)
    report = clock.report(11)
    assert report["views_per_second"] == pytest.approx(3)
    assert report["flops_per_second"] == pytest.approx(250)
    assert report["mfu"] == pytest.approx(250 / 4000)
    assert report["mfu_with_encoders"] == pytest.approx(300 / 4000)


def test_a_wait_counts_only_where_the_device_has_nothing_left_to_do(now):
    clock = Clock()
    clock.begin(0, views=1, flops=FLOPS)
    for ready, counted in ((False, 0.0), (True, 0.75)):
        last = {"loss": Array(ready=False), "more": Array(ready=True)}
        with clock.waiting(last):
            now.pass_(3)
            last["loss"].ready = ready  # it becomes ready during the wait, or not
        now.pass_(1)
        assert clock.report(1)["time/data"] == pytest.approx(counted)
