"""Plans of the shipped stages stay as good as they were: memory, collectives, estimated speed.

What they were is in tests/plans, written by tools/benchmarks/plan_tables.py.
"""

import json
import os
import subprocess
import sys

import pytest
from places import ROOT

PLANS = {file.stem: json.loads(file.read_text()) for file in (ROOT / "tests/plans").glob("*.json")}
ALWAYS = ("stage1_text2image_512.v3-256", "stage2_multitask.v3-256")  # others when asked: -m pod
SLACK = 1.01  # of bytes, for another version of the compiler
LEAST = 0.97  # of the estimated MFU


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
