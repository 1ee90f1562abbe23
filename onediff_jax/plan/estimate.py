"""Seconds that a compiled program would take: the compiler's cycles, and exchanges over a link.

An estimate.  It adds the cycles that the compiler notes at every instruction, which know of no
stalls; a Pallas kernel carries none and is taken at a stated share of peak, ours at that of their
compiled schedules, or at the memory's rate where that is longer.  Exchanges carry none either: each
takes what a ring needs at the link's rate, one after the other, while instructions run on until
they need its result.
"""

import dataclasses
import math
import re
from collections import Counter
from typing import NamedTuple

from onediff_jax.plan.collectives import collective_of
from onediff_jax.plan.program import Instruction, Program, bytes_of
from onediff_jax.plan.topologies import Generation

KERNEL_SHARE = 0.5  # of peak, that a Pallas kernel is taken to reach

# That our own are taken to reach, by the schedules that the kernels' compiler made of them: FLOPs
# of a grid step at peak over the cycles of its bundles, of which none is a stall (docs/design.md,
# "Attention and the block on TPU v3").  Without a cap: of 300 words of a prompt, 384 with padding.
OWN_SHARES = {
    "flash_v3_forward_capped": 0.62,
    "flash_v3_backward_capped": 0.71,
    "flash_v3_forward": 0.28,
    "flash_v3_backward": 0.47,
}

# Products of a query and a key in splash attention's kernels, which note nothing themselves.
SPLASH = (("fwd", 2), ("dkv", 4), ("dq", 3))

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


def estimate_of(
    program: Program, machine: Generation, link: float = 0, kernel_share: float = KERNEL_SHARE
) -> Estimate:
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
                taken = seconds_of(instruction, machine, kernel_share)
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


def seconds_of(instruction: Instruction, machine: Generation, kernel_share: float) -> float:
    """What an instruction takes; 0 where nothing is known of it."""
    if 'target="tpu_custom_call"' not in instruction.rest:
        return instruction.cycles / machine.clock
    noted = re.search(r'"bytes_accessed":"?(\d+)', instruction.rest)
    moved = int(noted[1]) if noted else bytes_of(instruction.result + taken_by(instruction))
    own = (share for name, share in OWN_SHARES.items() if name in instruction.source)
    share = next(own, kernel_share)
    return max(kernel_flops(instruction) / (share * machine.peak), moved / machine.memory_rate)


def kernel_flops(instruction: Instruction) -> int:
    """FLOPs of a kernel as it notes them; of a splash attention kernel by its shapes; else 0."""
    if noted := re.search(r'"flops":"?(\d+)', instruction.rest):
        return int(noted[1])
    for part, products in SPLASH:
        if re.search(rf"splash_m[hq]a_{part}", instruction.source):
            arrays = re.compile(r"\b(?:bf16|f32)\[([\d,]+)\]")
            queries, keys = (
                [int(size) for size in sizes.split(",")]
                for sizes in arrays.findall(taken_by(instruction))[:2]
            )
            # Of the backward pass's two kernels the first may do the work of both, with one more
            # result: that of the second takes one product more, not three.
            fused = part == "dkv" and len(arrays.findall(instruction.result)) == 5
            return 2 * (products + fused) * math.prod(queries) * keys[-2]
    return 0


def taken_by(instruction: Instruction) -> str:
    """The types of what a kernel takes."""
    found = re.search(r"operand_layout_constraints=\{(.*?\})\}", instruction.rest)
    return found[1] if found else ""


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
