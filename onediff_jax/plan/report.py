"""A plan as text: memory, where the seconds go, collectives, MFU."""

import collections
import re

from onediff_jax.plan.estimate import Estimate, estimate_of, seconds_of
from onediff_jax.plan.hlo import Program
from onediff_jax.plan.plan import Plan
from onediff_jax.plan.topologies import Generation

GB, GIB = 1e9, 2**30
PARTS = 16  # parts of the network that are listed


def plan_lines(plan: Plan) -> list[str]:
    """A plan as a table; where the step does not fit, its largest arrays instead of estimates."""
    made, topology = plan.compiled, plan.topology
    kinds = plan.held | {"padding": max(made.arguments - sum(plan.held.values()), 0)}
    kinds |= {"results": made.results, "temporaries": made.bytes - made.arguments - made.results}
    lines = [
        f"{topology.name}: {topology.devices} devices, {topology.generation.kind}.  Nothing ran on "
        "them: all times are estimates.",
        row("parameters", f"{plan.params:,}"),
        row("memory a device", f"{gib(made.bytes)} of {gib(plan.limit)} GiB, {plan.used:.0%}"),
        *(row(f"  {kind}", f"{gib(size)} GiB") for kind, size in kinds.items()),
        row("FLOPs a device", f"{plan.flops.total / topology.devices / 1e12:.2f} T"),
        *(
            row(f"  {network}", f"{flops / topology.devices / 1e12:.2f} T")
            for network, flops in {**plan.flops.trained, **plan.flops.encoders}.items()
        ),
    ]
    if not plan.fits:
        lines.append(f"It does not fit: {made.refusal}  The largest arrays of a device:")
        return lines + [
            f"  {gib(t.bytes):>6} GiB  {t.shape}  {t.source[-90:]}" for t in made.largest
        ]
    return lines + estimate_lines(plan)


def estimate_lines(plan: Plan) -> list[str]:
    """What the step is estimated to take, and what follows from it."""
    topology, estimate = plan.topology, plan.estimate
    program, machine = plan.compiled.program, topology.generation
    slow = estimate_of(program, machine, machine.link / 2)
    lines = [
        "estimated seconds of a step",
        *work_lines(estimate),
        "by part of the network",
        *source_lines(program, machine, PARTS),
        "collectives of a step, on a device",
        *traffic_lines(estimate),
        row("MFU", mfu(plan, estimate.compute, "compute-only")),
        *(
            row("", mfu(plan, seconds, f"with communication at {rate / 1e9:.0f} GB/s"))
            for seconds, rate in (
                (estimate.seconds, machine.link),
                (slow.seconds, machine.link / 2),
            )
        ),
        row("steps a second", f"{1 / estimate.seconds:.3f}"),
        row("samples a second", f"{plan.samples_per_second:.1f}"),
        row("", f"{plan.samples_per_host:.1f} to be read by each of {topology.hosts} hosts"),
        row("the whole run", f"{plan.days:.2f} days for {plan.steps:,} steps"),
    ]
    if unknown := program.unknown_loops:
        lines.append(f"loops that do not say how often they run, counted once: {unknown}")
    return [*lines, f"compiled in {plan.compiled.seconds:.0f} s"]


def mfu(plan: Plan, seconds: float, what: str) -> str:
    """MFU of the model, and with pretrained encoders inside the step where there are some."""
    said = f"{plan.mfu(seconds):.1%} {what}"
    return said + f"; {plan.mfu(seconds, True):.1%} with encoders" * bool(plan.flops.encoders)


def row(name: str, value: str) -> str:
    """A line of the table."""
    return f"  {name:20}{value}"


def gib(size: int) -> str:
    """Bytes in GiB."""
    return f"{size / GIB:.2f}"


def work_lines(estimate: Estimate) -> list[str]:
    """Estimated seconds by kind of work, then of collectives."""
    lines = [
        f"  {kind:20}{seconds:9.4f} s {seconds / estimate.compute:6.1%}"
        for kind, seconds in estimate.work.most_common()
    ]
    lines.append(f"  {'compute':20}{estimate.compute:9.4f} s")
    lines.append(f"  {'collectives':20}{estimate.wire:9.4f} s on the wire")
    lines.append(f"  {'':20}{estimate.exposed:9.4f} s exposed communication")
    return lines


def traffic_lines(estimate: Estimate) -> list[str]:
    """Collectives of a step by kind: how many, bytes on a device, how many are overlapped."""
    return [
        f"  {kind:20}{traffic.count:7} x {traffic.bytes / GB:9.3f} GB, {traffic.overlapped} async"
        for kind, traffic in sorted(estimate.traffic.items(), key=lambda item: -item[1].bytes)
    ]


def source_lines(program: Program, machine: Generation, count: int) -> list[str]:
    """Seconds by the part of the network that an instruction comes from, and by pass."""
    spent: dict[tuple[str, str], float] = collections.defaultdict(float)
    for instruction, times in program.running():
        seconds = seconds_of(instruction, machine) * times
        spent[part_of(instruction.source)] += seconds
    return [
        f"  {seconds:9.4f} s  {part:40} {direction}"
        for (part, direction), seconds in sorted(spent.items(), key=lambda item: -item[1])[:count]
        if seconds
    ]


def part_of(source: str) -> tuple[str, str]:
    """The part of the network that a traced operation belongs to, and the pass it is in."""
    direction = "backward" if "transpose(" in source else "forward"
    direction = "recomputed" if "rematted_computation" in source else direction
    skipped = r"jit|jvp|transpose|shard_map|while|body|closed_call|checkpoint|rematted_computation"
    names = [n for n in source.split("/")[:-1] if not re.match(rf"({skipped})\b", n)]
    return "/".join(names[-3:]) or "(made by the compiler)", direction
