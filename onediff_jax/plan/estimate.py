"""Seconds that a compiled program would take: the compiler's cycles, and exchanges over a link.

An estimate.  It adds the cycles that the compiler notes at every instruction, which know of no
stalls; kernels have a module of their own.  Exchanges carry no cycles: each takes what a ring needs
at the link's rate, one after the other, while instructions run on until they need its result.
"""

import dataclasses
from collections import Counter
from typing import NamedTuple

from onediff_jax.plan.collectives import collective_of
from onediff_jax.plan.hlo import Instruction, Program
from onediff_jax.plan.kernels import kernel_seconds
from onediff_jax.plan.topologies import Generation

# Opcodes that move numbers and compute none.
MOVES = {
    *("parameter", "constant", "bitcast", "copy", "transpose", "reshape", "slice", "pad", "tuple"),
    *("dynamic-slice", "dynamic-update-slice", "concatenate", "broadcast", "get-tuple-element"),
    *("convert", "iota", "partition-id", "fusion"),
}
PRODUCTS = {"convolution", "dot"}
OTHERS = {"gather", "scatter", "sort", "rng", "rng-bit-generator", "reduce-window", "infeed"}


class Traffic(NamedTuple):
    """Exchanges of one kind in a run of the program."""

    count: int = 0
    bytes: int = 0  # on a device
    beside: int = 0  # of the count: begun and ended apart, so that instructions run beside them


@dataclasses.dataclass
class Estimate:
    """What a run of a program takes on one device."""

    work: Counter  # seconds by kind of work
    wire: float  # seconds of exchanges, one after the other
    exposed: float  # seconds in which instructions wait for them
    traffic: dict[str, Traffic]

    @property
    def compute(self) -> float:
        """Seconds of all instructions, without exchanges."""
        return sum(self.work.values(), 0.0)

    @property
    def seconds(self) -> float:
        """Seconds altogether."""
        return self.compute + self.exposed


def estimate_of(program: Program, machine: Generation, link: float = 0) -> Estimate:
    """The estimate of a run from the entry on; `link` in bytes a second, 0: the machine's."""

    def along(computation: str) -> Estimate:
        total = Estimate(Counter(), 0.0, 0.0, {})
        now = free = 0.0  # the device's clock, and when the link is done with what was asked
        ready: dict[str, float] = {}
        for instruction in program.computations[computation]:
            if inner := program.inner(instruction):
                times, each = program.trips(instruction) or 1, along(inner)
                add(total, each, times)
                now += times * each.seconds
            elif exchange := collective_of(program, computation, instruction):
                if exchange.ends:
                    now = max(now, ready.get(exchange.ends, 0.0))
                    continue
                taken = exchange.sent / (link or machine.link)
                free = max(now, free) + taken
                if exchange.begins:
                    ready[exchange.begins] = free
                else:
                    now = free
                one = Traffic(1, exchange.bytes, bool(exchange.begins))
                add(total, Estimate(Counter(), taken, 0.0, {exchange.kind: one}), 1)
            else:
                taken = seconds_of(instruction, machine)
                if taken:
                    total.work[work_of(program, instruction)] += taken
                    now += taken
        total.exposed = max(now - total.compute, 0.0)
        return total

    return along(program.entry)


def add(total: Estimate, each: Estimate, times: int) -> None:
    """Adds what runs so many times; the total's waiting is known to its own clock alone."""
    for kind, seconds in each.work.items():
        total.work[kind] += times * seconds
    total.wire += times * each.wire
    for kind, more in each.traffic.items():
        before = total.traffic.get(kind, Traffic())
        total.traffic[kind] = Traffic(*(a + times * b for a, b in zip(before, more, strict=True)))


def seconds_of(instruction: Instruction, machine: Generation) -> float:
    """What an instruction takes; 0 where nothing is known of it."""
    if 'target="tpu_custom_call"' in instruction.rest:
        return kernel_seconds(instruction, machine)
    return instruction.cycles / machine.clock


def work_of(program: Program, instruction: Instruction) -> str:
    """The kind of work an instruction does, by what is inside it."""
    inside = program.inside(instruction.named("calls"))
    kinds = {i.kind for i in inside} or {instruction.kind}
    if instruction.kind == "custom-call" or "custom-call" in kinds and instruction.cycles == 0:
        return "kernels"
    if kinds & PRODUCTS:
        return "products"
    if kinds & OTHERS:
        return "other"
    return "copies" if kinds <= MOVES else "elementwise"
