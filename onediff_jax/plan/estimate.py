"""Seconds that a compiled program would take: the compiler's cycles, and collectives over a link.

An estimate.  It adds the cycles that the compiler notes at every instruction, which know of no
stalls.  Collectives carry no cycles: each takes what a ring needs at the link's rate, one after the
other, while instructions run on until they need its result.  Neither do Pallas kernels: one is
taken at the fraction of peak that its own schedule reaches, or at the memory's rate where that
takes longer.
"""

import dataclasses
import math
import re
from collections import Counter
from typing import NamedTuple

from onediff_jax.plan.hlo import Instruction, Program, bytes_of, collective_of
from onediff_jax.plan.topologies import Generation

# Opcodes that move numbers and compute none.
COPY_OPCODES = {
    *("parameter", "constant", "bitcast", "copy", "transpose", "reshape", "slice", "pad", "tuple"),
    *("dynamic-slice", "dynamic-update-slice", "concatenate", "broadcast", "get-tuple-element"),
    *("convert", "iota", "partition-id", "fusion"),
}
MATMUL_OPCODES = {"convolution", "dot"}
OTHER_OPCODES = {"gather", "scatter", "sort", "rng", "rng-bit-generator", "reduce-window", "infeed"}


# Of a device's peak, by what the compiler of kernels makes of them: the least over the sizes of
# `tools/benchmarks/kernels.py`, which prints them.  The first name that is found counts.  Of v4 and
# v5p both cores work, which splash's backward pass has them do only for several rows on a device.
DEVICE_KINDS = ("TPU v3", "TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite")
KERNEL_SHARES = {
    "flash_forward_capped_1024": (0.61, 0.38, 0.67, 0.66, 0.21),
    "flash_backward_capped_1024": (0.71, 0.53, 0.82, 0.82, 0.27),
    "flash_forward_capped": (0.52, 0.35, 0.68, 0.64, 0.21),
    "flash_backward_capped": (0.64, 0.51, 0.83, 0.80, 0.27),
    "flash_forward": (0.31, 0.28, 0.47, 0.45, 0.17),
    "flash_backward": (0.53, 0.57, 0.83, 0.80, 0.30),
    "splash_m[hq]a_fwd": (0.50, 0.30, 0.38, 0.38, 0.17),
    "splash_m[hq]a_dkv": (0.50, 0.50, 0.81, 0.76, 0.26),
    "splash_m[hq]a_dq": (0.50, 0.45, 0.66, 0.65, 0.24),
    "": (0.50, 0.50, 0.50, 0.50, 0.50),  # of any other, a guess, as of splash on v3
}

# Matmuls of queries and keys in splash attention's kernels, which note nothing themselves.
SPLASH_MATMULS = (("fwd", 2), ("dkv", 4), ("dq", 3))


class Traffic(NamedTuple):
    """Collectives of one kind in a run of the program."""

    count: int = 0  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    bytes: int = 0  # on a device
    overlapped: int = 0  # of the count: begun and ended apart, so that instructions run meanwhile


@dataclasses.dataclass
class Estimate:
    """What a run of a program takes on one device."""

    work: Counter  # seconds by kind of work
    wire: float  # seconds of collectives, one after the other
    exposed: float  # seconds of exposed communication, in which instructions wait for them
    traffic: dict[str, Traffic]

    @property
    def compute(self) -> float:
        """Seconds of all instructions, without collectives."""
        return sum(self.work.values(), 0.0)

    @property
    def seconds(self) -> float:
        """Seconds altogether."""
        return self.compute + self.exposed


def estimate_of(program: Program, machine: Generation, link: float = 0) -> Estimate:
    """The estimate of a run from the entry on; `link` in bytes a second, 0: the machine's."""

    def estimate_from(computation: str) -> Estimate:
        total = Estimate(Counter(), 0.0, 0.0, {})
        now = free = 0.0  # the device's clock, and when the link is done with what was asked
        ready: dict[str, float] = {}
        for instruction in program.computations[computation]:
            if inner := program.inner(instruction):
                times, each = program.trips(instruction) or 1, estimate_from(inner)
                add(total, each, times)
                now += times * each.seconds
            elif collective := collective_of(program, computation, instruction):
                if collective.ends:
                    now = max(now, ready.get(collective.ends, 0.0))
                    continue
                sent = collective.sent / (link or machine.link)
                free = max(now, free) + sent
                if collective.begins:
                    ready[collective.begins] = free
                else:
                    now = free
                one = Traffic(1, collective.bytes, bool(collective.begins))
                add(total, Estimate(Counter(), sent, 0.0, {collective.kind: one}), 1)
            else:
                seconds = seconds_of(instruction, machine)
                if seconds:
                    total.work[work_of(program, instruction)] += seconds  # type: ignore[assignment]  # seconds
                    now += seconds
        total.exposed = max(now - total.compute, 0.0)
        return total

    return estimate_from(program.entry)


def add(total: Estimate, each: Estimate, times: int) -> None:
    """Adds what runs so many times, all but exposed communication, which takes a clock."""
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
    if kinds & MATMUL_OPCODES:
        return "matmuls"
    if kinds & OTHER_OPCODES:
        return "other"
    return "copies" if kinds <= COPY_OPCODES else "elementwise"


def kernel_seconds(kernel: Instruction, machine: Generation) -> float:
    """What a kernel takes."""
    noted = re.search(r'"bytes_accessed":"?(\d+)', kernel.rest)
    moved = int(noted[1]) if noted else bytes_of(kernel.result + operand_types(kernel))
    reached = kernel_share(kernel, machine) * machine.peak
    return max(kernel_flops(kernel) / reached, moved / machine.memory_rate)


def kernel_share(kernel: Instruction, machine: Generation) -> float:
    """Of the machine's peak, that the kernel is taken to reach."""
    shares = next(
        shares for name, shares in KERNEL_SHARES.items() if re.search(name, kernel.source)
    )
    return shares[DEVICE_KINDS.index(machine.kind)]


def kernel_flops(kernel: Instruction) -> int:
    """FLOPs of a kernel as it notes them; of a splash attention kernel by its shapes; else 0."""
    if noted := re.search(r'"flops":"?(\d+)', kernel.rest):
        return int(noted[1])
    for part, matmuls in SPLASH_MATMULS:
        if re.search(rf"splash_m[hq]a_{part}", kernel.source):
            arrays = re.compile(r"\b(?:bf16|f32)\[([\d,]+)\]")
            queries, keys = (
                [int(size) for size in sizes.split(",")]
                for sizes in arrays.findall(operand_types(kernel))[:2]
            )
            # Of the backward pass's two kernels the first may do the work of both, with one more
            # result: that of the second takes one matmul more, not three.
            fused = part == "dkv" and len(arrays.findall(kernel.result)) == 5
            return 2 * (matmuls + fused) * math.prod(queries) * keys[-2]
    return 0


def operand_types(kernel: Instruction) -> str:
    """The types of a kernel's operands."""
    found = re.search(r"operand_layout_constraints=\{(.*?\})\}", kernel.rest)
    return found[1] if found else ""
