"""Plans of the shipped stages stay as good as they were: in room, in exchanges, in estimated speed.

What they were is in tests/plans, written by tools/benchmarks/plan_tables.py.
"""

import copy
import json
import os
import subprocess
import sys

import pytest
from places import ROOT

PLANS = {file.stem: json.loads(file.read_text()) for file in (ROOT / "tests/plans").glob("*.json")}
ALWAYS = ("stage1_text2image_512.v3-256", "stage2_multitask.v3-256")  # others when asked: -m pod
SLACK = 1.01  # of bytes, for another version of the compiler
LEAST = 0.97  # of the estimated share of peak


def worse(before: dict, now: dict) -> list[str]:
    """In what a plan is worse than one before."""
    found = []
    if before["fits"] and not now["fits"]:
        found.append("it does not fit any more")
    for kind, traffic in now["collectives"].items():
        allowed = before["collectives"].get(kind, {"bytes": 0})["bytes"] * SLACK
        if traffic["bytes"] > allowed:
            found.append(f"{kind}: {traffic['bytes']:,} bytes, more than {allowed:,.0f}")
    for name in ("estimated_mfu", "estimated_mfu_with_communication"):
        if before[name] and now[name] and now[name] < LEAST * before[name]:
            found.append(f"{name}: {now[name]:.3f}, less than {LEAST} of {before[name]:.3f}")
    return found


PLAN = {
    "fits": True,
    "collectives": {"all-gather": {"count": 16, "bytes": 1000}},
    "estimated_mfu": 0.6,
    "estimated_mfu_with_communication": 0.5,
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"fits": False, "estimated_mfu": None, "estimated_mfu_with_communication": None}, "fit"),
        ({"collectives": {"all-gather": {"count": 32, "bytes": 1009}}}, None),
        ({"collectives": {"all-gather": {"count": 16, "bytes": 1011}}}, "all-gather: 1,011"),
        ({"collectives": {"all-reduce": {"count": 1, "bytes": 4}}}, "all-reduce: 4 bytes"),
        ({"collectives": {}}, None),
        ({"estimated_mfu": 0.583}, None),
        ({"estimated_mfu": 0.581}, "estimated_mfu: 0.581"),
        ({"estimated_mfu_with_communication": 0.48}, "estimated_mfu_with_communication: 0.480"),
        ({"estimated_mfu": 0.9, "estimated_mfu_with_communication": 0.9}, None),
    ],
)
def test_a_plan_is_worse_by_room_exchanges_or_estimated_speed(changes, said):
    found = worse(PLAN, copy.deepcopy(PLAN) | changes)
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


def test_plans_are_kept_for_what_is_always_planned_again():
    assert set(ALWAYS) <= set(PLANS)


@pytest.mark.pod
@pytest.mark.parametrize(
    "name",
    [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in PLANS],
)
def test_a_stage_is_planned_as_well_as_before(name, tmp_path):
    pytest.importorskip("libtpu")
    kept, file = PLANS[name], tmp_path / "plan.json"
    command = [sys.executable, *kept["command"].split()[1:], "--json", str(file)]
    # Not in this process: tests have settings of their own that reach into programs.
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert file.is_file(), run.stderr[-2000:]
    assert worse(kept["plan"], json.loads(file.read_text())) == []
