"""An estimate in words: where the seconds go, and what is exchanged."""

import re
from collections import Counter

from onediff_jax.plan.estimate import Estimate, seconds_of, work_of
from onediff_jax.plan.hlo import Program
from onediff_jax.plan.topologies import Generation

GB = 1e9


def work_lines(estimate: Estimate) -> list[str]:
    """Estimated seconds by kind of work, then of exchanges."""
    lines = [
        f"  {kind:20}{seconds:9.4f} s {seconds / estimate.compute:6.1%}"
        for kind, seconds in estimate.work.most_common()
    ]
    lines.append(f"  {'compute':20}{estimate.compute:9.4f} s")
    lines.append(f"  {'exchanges':20}{estimate.wire:9.4f} s on the wire")
    lines.append(f"  {'':20}{estimate.exposed:9.4f} s not hidden behind compute")
    return lines


def traffic_lines(estimate: Estimate) -> list[str]:
    """Exchanges of a step by kind: how many, bytes on a device, and how many run beside others."""
    return [
        f"  {kind:20}{traffic.count:7} x {traffic.bytes / GB:9.3f} GB, {traffic.beside} async"
        for kind, traffic in sorted(estimate.traffic.items(), key=lambda item: -item[1].bytes)
    ]


def costliest_lines(program: Program, machine: Generation, count: int = 10) -> list[str]:
    """The instructions that take longest in all their runs, and where they come from."""
    spent = [
        (seconds_of(instruction, machine) * times, times, instruction)
        for instruction, times in program.running()
    ]
    spent.sort(key=lambda item: -item[0])
    return [
        f"  {seconds:9.4f} s {times:5} x {work_of(program, instruction):12}"
        f"{instruction.name:40} {instruction.result[:60]}  {instruction.source[-90:]}"
        for seconds, times, instruction in spent[:count]
    ]


def source_lines(program: Program, machine: Generation, count: int = 30) -> list[str]:
    """Seconds by the part of the network that an instruction comes from, and by pass."""
    spent: Counter[tuple[str, str]] = Counter()
    for instruction, times in program.running():
        seconds = seconds_of(instruction, machine) * times
        spent[part_of(instruction.source)] += seconds
    return [
        f"  {seconds:9.4f} s  {part:40} {direction}"
        for (part, direction), seconds in spent.most_common(count)
        if seconds
    ]


def part_of(source: str) -> tuple[str, str]:
    """The part of the network that a traced operation belongs to, and the pass it is in."""
    direction = "backward" if "transpose(" in source else "forward"
    direction = "recomputed" if "rematted_computation" in source else direction
    skipped = r"jit|jvp|transpose|shard_map|while|body|closed_call|checkpoint|rematted_computation"
    names = [n for n in source.split("/")[:-1] if not re.match(rf"({skipped})\b", n)]
    return "/".join(names[-3:]) or "(made by the compiler)", direction
