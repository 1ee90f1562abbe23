"""Seconds of Pallas kernels, whose cycles the compiler does not tell.

A kernel is taken at the share of peak that its own schedule reaches, or at the memory's rate where
that is longer.
"""

import math
import re

from onediff_jax.plan.hlo import Instruction, bytes_of
from onediff_jax.plan.topologies import Generation

# Of a device's peak, by what the compiler of kernels makes of them: the least over the sizes of
# `tools/benchmarks/kernels.py`, which prints them.  The first name that is found counts.  Of v4 and
# v5p both cores work, which splash's backward pass has them do only for several rows on a device.
KINDS = ("TPU v3", "TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite")
SHARES = {
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

# Products of a query and a key in splash attention's kernels, which note nothing themselves.
SPLASH = (("fwd", 2), ("dkv", 4), ("dq", 3))


def kernel_seconds(kernel: Instruction, machine: Generation) -> float:
    """What a kernel takes."""
    noted = re.search(r'"bytes_accessed":"?(\d+)', kernel.rest)
    moved = int(noted[1]) if noted else bytes_of(kernel.result + taken_by(kernel))
    reached = kernel_share(kernel, machine) * machine.peak
    return max(kernel_flops(kernel) / reached, moved / machine.memory_rate)


def kernel_share(kernel: Instruction, machine: Generation) -> float:
    """Of the machine's peak, that the kernel is taken to reach."""
    shares = next(shares for name, shares in SHARES.items() if re.search(name, kernel.source))
    return shares[KINDS.index(machine.kind)]


def kernel_flops(kernel: Instruction) -> int:
    """FLOPs of a kernel as it notes them; of a splash attention kernel by its shapes; else 0."""
    if noted := re.search(r'"flops":"?(\d+)', kernel.rest):
        return int(noted[1])
    for part, products in SPLASH:
        if re.search(rf"splash_m[hq]a_{part}", kernel.source):
            arrays = re.compile(r"\b(?:bf16|f32)\[([\d,]+)\]")
            queries, keys = (
                [int(size) for size in sizes.split(",")]
                for sizes in arrays.findall(taken_by(kernel))[:2]
            )
            # Of the backward pass's two kernels the first may do the work of both, with one more
            # result: that of the second takes one product more, not three.
            fused = part == "dkv" and len(arrays.findall(kernel.result)) == 5
            return 2 * (products + fused) * math.prod(queries) * keys[-2]
    return 0


def taken_by(kernel: Instruction) -> str:
    """The types of what a kernel takes."""
    found = re.search(r"operand_layout_constraints=\{(.*?\})\}", kernel.rest)
    return found[1] if found else ""
