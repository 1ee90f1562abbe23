"""The plans of the shipped stages: computed and written to the pages.

    pip install -e '.[tpu]'
    python tools/benchmarks/plan_tables.py --plan all                        # some minutes for each
    python tools/benchmarks/plan_tables.py --plan stage2_multitask.v3-256    # one of them
    python tools/benchmarks/plan_tables.py                                 # only writes the tables

A plan is kept in tests/plans/CONFIG.SLICE[.VARIANT].json, with its command and date; a test
compares new ones with it.  Tables go between the marks of README.md, docs/pod.md and docs/plan.md,
and a line to a config's docstring.
"""

import argparse
import datetime
import json
import pathlib
import re
import runpy
import subprocess
import sys
import tempfile
from typing import Any

from onediff_jax.data.batching.settings import examples_per_row
from onediff_jax.plan.topologies import topology_of
from onediff_jax.train.config import RunConfig, run_config

ROOT = pathlib.Path(__file__).parents[2]
PLANS = ROOT / "tests" / "plans"
STAGES = (
    "stage1_text2image_256",
    "stage1_text2image_512",
    "stage2_multitask",
    "stage3_text2image_1024",
    "stage3_id",
    "stage3_multiview",
)
HOME = "v3-256"
OTHERS = ("v4-256", "v5e-256", "v5p-128", "v6e-256")
KNOWN = [f"{stage}.{HOME}" for stage in STAGES]
VARIANTS = {
    "states": "--states",  # of the text encoder, from caches
    "flash": "--config.model.attention=flash",  # our own kernel
}
KNOWN += [f"{stage}.{HOME}.{variant}" for variant in VARIANTS for stage in STAGES]
KNOWN += [f"{stage}.{other}" for stage in STAGES for other in OTHERS]
KNOWN += [f"stage2_multitask.{other}.flash" for other in OTHERS]

COLUMNS = (
    "memory a device",
    "TFLOP a device",
    "compute s",
    "communication s",
    "exposed s",
    "MFU, compute-only",
    "MFU with communication",
    "compute-only, with encoders",
    "with communication and encoders",
    "samples/s",
    "samples/s a host",
    "days",
)


def main() -> None:
    """Plans what is asked for, then writes all tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--plan", nargs="+", default=[], metavar="NAME", help=f"all, or of {', '.join(KNOWN)}"
    )
    options = parser.parse_args()
    names = KNOWN if options.plan == ["all"] else options.plan
    if unknown := set(names) - set(KNOWN):
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(KNOWN)}")
    for name in names:
        make(name)
    for page in (ROOT / "README.md", ROOT / "docs" / "pod.md", ROOT / "docs" / "plan.md"):
        page.write_text(with_tables(page.read_text()))
    for stage in STAGES:
        if is_kept(f"{stage}.{HOME}"):
            file = ROOT / "configs" / f"{stage}.py"
            file.write_text(with_line(file.read_text(), stage))


def make(name: str) -> None:
    """Plans a stage and keeps what comes of it, a step that does not fit as well."""
    command = command_of(name)
    print(" ".join(command), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        made = pathlib.Path(folder) / "plan.json"
        run = subprocess.run([sys.executable, *command[1:], "--json", str(made)], cwd=ROOT)
        if not made.exists():
            sys.exit(f"{name} was not planned; the command ended with status {run.returncode}.")
        found = {
            "command": " ".join(command),
            "date": datetime.date.today().isoformat(),
            "plan": json.loads(made.read_text()),
        }
    (PLANS / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")


def command_of(name: str) -> list[str]:
    """The command line of a plan."""
    stage, slice_name, *variants = name.split(".")
    command = ["python", "-m", "onediff_jax", "plan", "--config", f"configs/{stage}.py"]
    command += ["--topology", slice_name, *(VARIANTS[variant] for variant in variants)]
    devices = topology_of(slice_name).devices
    if config_of(stage).mesh.fsdp >= devices:  # gathers from all of a slice run beside nothing
        command.append(f"--config.mesh.fsdp={devices // 2}")
    return command


def config_of(stage: str) -> RunConfig:
    """A stage's settings."""
    return run_config(runpy.run_path(str(ROOT / "configs" / f"{stage}.py"))["get_config"]())


def is_kept(name: str) -> bool:
    """Whether there is such a plan."""
    return (PLANS / f"{name}.json").exists()


def kept(name: str) -> dict[str, Any]:
    """A plan as it is kept; one without its run's steps and samples has the config's."""
    found = json.loads((PLANS / f"{name}.json").read_text())
    if "samples" not in found["plan"]:
        config = config_of(name.split(".")[0])
        samples = config.rows * examples_per_row(config.data)
        found["plan"] |= {"steps": config.steps, "samples": samples}
    return found


def cells(name: str) -> list[str]:
    """A plan's row of a table, after its name."""
    plan = kept(name)["plan"]
    used = plan["hbm_bytes"] / plan["hbm_limit_bytes"]
    memory = f"{plan['hbm_bytes'] / 2**30:.2f} GiB, {used:.0%}"
    topology = topology_of(plan["topology"])
    work = f"{(plan['model_flops'] + plan['encoder_flops']) / topology.devices / 1e12:.1f}"
    if not plan["fits"]:
        return [memory, work, "does not fit", *[""] * (len(COLUMNS) - 3)]
    compute, seconds = plan["estimated_compute_seconds"], seconds_of(plan)
    samples = plan["samples"]
    return [
        memory,
        work,
        f"{compute:.3f}",
        f"{plan['estimated_communication_seconds']:.3f}",
        f"{seconds - compute:.3f}",
        f"{plan['estimated_mfu']:.1%}",
        f"{plan['estimated_mfu_with_communication']:.1%}",
        f"{plan['estimated_mfu_with_encoders']:.1%}",
        f"{plan['estimated_mfu_with_encoders_and_communication']:.1%}",
        f"{samples / seconds:,.0f}",
        f"{samples / seconds / topology.hosts:.1f}",
        f"{plan['steps'] * seconds / 86_400:.1f}",
    ]


def seconds_of(plan: dict[str, Any]) -> float:
    """Estimated seconds of a step, exposed communication included."""
    ratio = plan["estimated_mfu"] / plan["estimated_mfu_with_communication"]
    return plan["estimated_compute_seconds"] * ratio


def table(names: list[str]) -> str:
    """Estimates of plans in Markdown, with where they come from."""
    rows = [["plan", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    rows += [[f"`{name}`", *cells(name)] for name in names]
    dates = sorted({kept(name)["date"] for name in names})
    period = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return (
        f"Estimates of {period}; nothing ran on a TPU.  The first is\n"
        f"`{kept(names[0])['command']}`.\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)
    )


def summary() -> str:
    """The stages on HOME in Markdown, as they are and by our own kernel: memory and MFU."""
    titles = ["config", "memory of a core", *COLUMNS[5:9]]
    titles += ["our kernel, compute-only", "our kernel, with communication"]
    rows = [titles, ["---"] * len(titles)]
    for stage in STAGES:
        name, ours = f"{stage}.{HOME}", f"{stage}.{HOME}.flash"
        if is_kept(name) and is_kept(ours):
            found, with_ours = cells(name), cells(ours)
            memory = found[0].split(", ")[1]
            rows.append([f"`{stage}`", memory, *found[5:9], *with_ours[5:7]])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def with_tables(page: str) -> str:
    """A page with its tables written anew between their marks."""

    def written(found: re.Match) -> str:
        wanted = [name for name in KNOWN if re.search(found[1], name) and is_kept(name)]
        if not wanted:
            return found[0]
        return f"<!-- plans {found[1]} -->\n{table(wanted)}\n<!-- end of plans -->"

    stages = f"<!-- stages -->\n{summary()}\n<!-- end of stages -->"
    page = re.sub(r"<!-- stages -->.*?<!-- end of stages -->", lambda _: stages, page, flags=re.S)
    return re.sub(r"<!-- plans (\S+) -->\n.*?<!-- end of plans -->", written, page, flags=re.S)


def with_line(text: str, stage: str) -> str:
    """A config's text with its estimate in the docstring."""
    found = dict(zip(COLUMNS, cells(f"{stage}.{HOME}"), strict=True))
    date = kept(f"{stage}.{HOME}")["date"]
    line = (
        f"Estimated on {HOME} ({date}): {found['memory a device']} of a core's memory;\n"
        f"MFU {found['MFU, compute-only']}, {found['MFU with communication']} with communication "
        f"({found['with communication and encoders']} with encoders);\n"
        f"{found['samples/s']} samples/s; {found['days']} days.\n"
    )
    text = re.sub(r"\n?Estimated on .*?days\.\n", "", text, count=1, flags=re.S)
    return text.replace('\n"""\n', f'\n\n{line}"""\n', 1)


if __name__ == "__main__":
    main()
