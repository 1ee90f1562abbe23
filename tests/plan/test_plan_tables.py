"""Tables of docs, and lines of configs, are those of the kept plans."""

import importlib.util

import pytest
from places import TOOLS

SPEC = importlib.util.spec_from_file_location(
    "plan_tables", TOOLS / "benchmarks" / "plan_tables.py"
)
plan_tables = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(plan_tables)

PAGES = [plan_tables.ROOT / page for page in ("README.md", "docs/pod.md", "docs/plan.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_written_anew_by_tools_plan_tables(page):
    assert page.read_text() == plan_tables.with_tables(page.read_text())


@pytest.mark.parametrize("stage", plan_tables.STAGES)
def test_a_config_says_what_its_plan_says(stage):
    text = (plan_tables.ROOT / "configs" / f"{stage}.py").read_text()
    assert text == plan_tables.with_line(text, stage)


def test_mfu_is_the_model_s_flops_over_the_peak_of_all_cores():
    plan = plan_tables.kept("stage2_multitask.v3-256")["plan"]
    peak = 256 * 61.5e12 * plan["estimated_compute_seconds"]
    assert plan["estimated_mfu"] == pytest.approx(plan["model_flops"] / peak, rel=1e-4)
    total = plan["model_flops"] + plan["encoder_flops"]
    assert plan["estimated_mfu_with_encoders"] == pytest.approx(total / peak, rel=1e-4)
