"""Plans: their numbers, their words, their search.  Compiled here for the host's eight devices."""

import json
import re
from collections import Counter

import jax
import pytest
from tiny import tiny_config

from onediff_jax import cli
from onediff_jax.commands import plan as command
from onediff_jax.errors import InputError
from onediff_jax.plan import estimate as estimating
from onediff_jax.plan import plan as verdict
from onediff_jax.plan import search
from onediff_jax.plan.compiled import Compiled, Tensor
from onediff_jax.plan.estimate import Estimate, Traffic
from onediff_jax.plan.hlo import program_of
from onediff_jax.plan.plan import Plan, held_bytes, plan_of
from onediff_jax.plan.report import plan_lines
from onediff_jax.plan.topologies import topology_of
from onediff_jax.train.compile import planned_step
from onediff_jax.train.config import as_dict, run_config
from onediff_jax.train.metrics import StepFlops
from onediff_jax.train.prepare import prepare

KEYS = {
    *(
        "topology",
        "cores",
        "steps",
        "samples",
        "params",
        "hbm_bytes",
        "hbm_limit_bytes",
        "fits",
        "model_flops",
    ),
    *("estimated_compute_seconds", "estimated_communication_seconds", "estimated_mfu"),
    *("estimated_mfu_with_communication", "collectives", "compile_seconds", "encoder_flops"),
    *("estimated_mfu_with_encoders", "estimated_mfu_with_encoders_and_communication"),
}
GIB = 2**30


# A millisecond of v3.
PROGRAM = """HloModule m

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %p = f32[8]{0} fusion(%x), backend_config={"estimated_cycles":"940000"}, metadata={\
op_name="jit(step)/shard_map/transpose(jvp(N))/while/body/rematted_computation/feed_forward/w1/dot"}
}
"""


def plan(refusal: str = "") -> Plan:
    """On v3-256, 256 x 61.5 TFLOP/s: a step of 15,744 TFLOP in 2 seconds, and 2 more of waiting."""
    largest = (Tensor(3 * GIB, "bf16[16,1,3072,10240]", "jit(step)/layers/w1/dot_general"),)
    return Plan(
        topology_of("v3-256"),
        steps=100_000,
        samples=1024.0,
        params=2_800_389_184,
        flops=StepFlops({"denoiser": 14_956_800 * 10**9}, {"text encoder": 787_200 * 10**9}),
        held={"moments": 2 * GIB, "params": GIB},
        compiled=Compiled(program_of(PROGRAM), 61.26, 8 * GIB, 4 * GIB, GIB // 2, largest, refusal),
        estimate=Estimate(
            Counter(matmuls=1.5, copies=0.5), 3.0, 2.0, {"all-gather": Traffic(16, 10**9, 12)}
        ),
    )


def test_the_numbers_of_a_plan():
    assert plan().as_json() == {
        "topology": "v3-256",
        "cores": 256,
        "steps": 100_000,
        "samples": 1024.0,
        "params": 2_800_389_184,
        "hbm_bytes": 8 * GIB,
        "hbm_limit_bytes": int(15.48 * GIB),
        "fits": True,
        "model_flops": 14_956_800 * 10**9,
        "encoder_flops": 787_200 * 10**9,
        "estimated_compute_seconds": 2.0,
        "estimated_communication_seconds": 3.0,
        "estimated_mfu": 0.475,
        "estimated_mfu_with_communication": 0.2375,
        "estimated_mfu_with_encoders": 0.5,
        "estimated_mfu_with_encoders_and_communication": 0.25,
        "collectives": {"all-gather": {"count": 16, "bytes": 10**9}},
        "compile_seconds": 61.3,
    }
    assert set(plan().as_json()) == KEYS
    assert plan().samples_per_second == 256
    assert plan().days == pytest.approx(100_000 * 4 / 86_400)


def test_a_plan_says_what_it_estimates():
    said = "\n".join(plan_lines(plan()))
    for line in (
        r"v3-256: 256 devices, TPU v3\..*estimates",
        r"parameters +2,800,389,184",
        r"memory a device +8\.00 of 15\.48 GiB, 52%",
        r"moments +2\.00 GiB",
        r"padding +1\.00 GiB",
        r"results +0\.50 GiB",
        r"temporaries +3\.50 GiB",
        r"FLOPs a device +61\.50 T",
        r"text encoder +3\.08 T",
        r"matmuls +1\.5000 s +75\.0%",
        r"0\.0010 s  feed_forward/w1 +recomputed",
        r"all-gather +16 x +1\.000 GB, 12 async",
        r"MFU +47\.5% compute-only; 50\.0% with encoders\n",
        r"\n +23\.8% with communication at 82 GB/s; 25\.0% with encoders\n",
        r"steps a second +0\.250",
        r"samples a second +256\.0\n +8\.0 to be read by each of 32 hosts",
        r"the whole run +4\.63 days for 100,000 steps",
        r"compiled in 61 s",
    ):
        assert re.search(line, said), line


def test_what_does_not_fit_has_no_estimates_and_names_its_largest_arrays():
    refused = plan("RESOURCE_EXHAUSTED: Ran out of memory")
    numbers = refused.as_json()
    assert set(numbers) == KEYS
    assert {name for name, value in numbers.items() if value is None} == set(verdict.ESTIMATED)
    assert not numbers["fits"]
    said = "\n".join(plan_lines(refused))
    assert re.search(r"3\.00 GiB +bf16\[16,1,3072,10240\] +jit\(step\)/layers/w1", said)
    assert "MFU" not in said


@pytest.fixture
def here(monkeypatch):
    """The host's devices in the place of a slice's, and a microsecond for every instruction."""
    monkeypatch.setattr(verdict, "devices_of", lambda topology: jax.devices())
    monkeypatch.setattr(estimating, "seconds_of", lambda *_: 1e-6)


def settings(**changes):
    """A tiny run of images that are not there, but for changes; small, since it is compiled."""
    values = as_dict(tiny_config(rows=8))
    values["data"]["row"] = values["data"]["row"][:1]
    values["data"]["tasks"] = {"text2image": 1.0}
    values["model"]["depth"] = 1
    values["data"]["sources"] = {"none": {"kind": "folder", "path": "/there/is/no/such/folder"}}
    return search.with_settings(values, changes)


def test_a_run_is_planned_without_its_data(here):
    found = plan_of(run_config(settings()), topology_of("v3-8"))
    assert found.fits and set(found.as_json()) == KEYS
    assert found.params > 10_000
    assert found.samples == 8
    assert found.compiled.arguments >= sum(found.held.values())
    assert found.estimate.traffic["all-reduce"].bytes >= 4 * found.params  # the gradients


def test_a_device_holds_its_part(here):
    def held(**changes):
        config = run_config(settings(**changes))
        _, shapes = planned_step(prepare(config, absent=True))
        params = sum(leaf.size for leaf in jax.tree.leaves(shapes.state.params))
        return params, held_bytes(shapes)

    params, whole = held()
    assert whole["params"] == whole["ema"] == 4 * params
    assert whole["moments"] == pytest.approx(8 * params, abs=100)  # two, and their count
    # A row of 4 tokens a device: latents, positions, mask; ids and mask of a prompt; a few numbers.
    row = 4 * (8 * 4 * 4 + 3 * 4 + 1) + 12 * (4 + 1) + 4 * 4 + 1
    assert whole["batch"] == row
    _, shards = held(**{"mesh.data": 2, "mesh.fsdp": 4})
    assert whole["params"] / 4 <= shards["params"] < whole["params"] / 2
    assert shards["batch"] == row


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"rows": 12}, "rows is 12"), ({"mesh.data": 3}, "mesh.data x mesh.fsdp is 3 x 1")],
)
def test_what_does_not_suit_the_slice_is_refused_before_anything_is_compiled(here, changes, said):
    with pytest.raises(InputError, match=said):
        plan_of(run_config(settings(**changes)), topology_of("v3-8"))


def test_the_command_writes_its_numbers_and_fails_where_the_step_does_not_fit(
    monkeypatch, tmp_path, capsys
):
    values, file = settings(), tmp_path / "plan.json"
    monkeypatch.setattr(command, "plan_of", lambda *_: plan())
    command.plan(values, "v3-256", file)
    assert json.loads(file.read_text()) == plan().as_json()
    assert "2,800,389,184" in capsys.readouterr().out
    monkeypatch.setattr(command, "plan_of", lambda *_: plan("RESOURCE_EXHAUSTED: memory"))
    with pytest.raises(InputError, match=r"needs 8\.00 of 15\.48 GiB.*raise mesh\.fsdp"):
        command.plan(values, "v3-256", file)
    assert json.loads(file.read_text())["fits"] is False


def test_the_door_says_status_1_and_one_line(monkeypatch, capsys):
    monkeypatch.setattr(command, "plan_of", lambda *_: plan("RESOURCE_EXHAUSTED: memory"))
    asked = ["plan", "--config", "configs/scenes_tiny.py", "--topology", "v3-256"]
    assert cli.main(asked) == 1
    assert "does not fit" in (said := capsys.readouterr()).out
    assert said.err.startswith("onediff_jax: the step needs") and said.err.count("\n") == 1
    assert cli.main([*asked[:-1], "v3-255"]) == 1
    assert "it can be v3-1, v3-8" in capsys.readouterr().err
    assert cli.main(asked[:3]) == 2


def test_a_search_walks_all_combinations_and_ranks_them(monkeypatch, tmp_path, capsys):
    def pretended(config, topology, states):
        if config.mesh.fsdp == 4:
            raise InputError("mesh.fsdp is 4, no good.")
        seconds = {"dots": 1.0, "full": 2.0}[config.remat] + (config.mesh.fsdp == 2) * 4.0
        refusal = "RESOURCE_EXHAUSTED: no room" if config.rows == 32 else ""
        found = plan(refusal)._replace(samples=float(config.rows))
        found = found._replace(flops=StepFlops({"denoiser": 15_744 * 10**12}, {}))
        return found._replace(estimate=Estimate(Counter(matmuls=seconds), 0.0, 0.0, {}))

    monkeypatch.setattr(search, "plan_of", pretended)
    file = tmp_path / "plans.json"
    over = ["mesh.fsdp=1,2,4", "remat=dots,full", "rows=8,16,32"]
    command.plan(settings(), "v3-256", file, search=True, over=over)
    tried = json.loads(file.read_text())
    assert len(tried) == 3 * 2 * 3
    chosen = [(t["mesh.fsdp"], t["remat"], t["rows"]) for t in tried]
    assert chosen[:3] == [(1, "dots", 16), (1, "dots", 8), (1, "full", 16)]
    rates = [(2, "dots", 16), (2, "full", 16), (2, "dots", 8), (2, "full", 8)]
    assert chosen[4:8] == rates  # 16/5, 16/6, 8/5, 8/6 a second
    shown = capsys.readouterr().out
    assert re.search(r"1 +dots +16 +16\.0 +1\.000 +100\.0% +100\.0% +8\.00", shown)
    assert shown.count("no room") == 4 and shown.count("mesh.fsdp is 4, no good.") == 6


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ("rows=many", "rows is of type int"),
        ("mesh.depth=2", "config has no setting 'mesh.depth'"),
    ],
)
def test_what_a_search_cannot_try_is_named(over, said):
    with pytest.raises(InputError, match=said):
        command.plan(settings(), "v3-8", None, search=True, over=[over])
    with pytest.raises(InputError, match="add --search"):
        command.plan(settings(), "v3-8", None, search=False, over=[over])


def test_default_choices_suit_the_slice():
    choices = search.default_choices(topology_of("v4-256"))
    assert choices["mesh.fsdp"] == [8, 32, 128] and choices["rows"] == [128, 256, 512]
