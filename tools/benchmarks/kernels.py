"""The MFU that attention's kernels reach on TPUs, by their compiled schedules.

    pip install -e '.[tpu]'
    python tools/benchmarks/kernels.py                 # some minutes; on any machine

Compiles them at the released heads for absent TPUs and reads what the compiler of kernels writes
down: bundles of instructions, a cycle each and the delays that they ask for.  A share is what a
step of the grid multiplies, at peak, over the cycles of its bundles; waiting for memory is in none
of it.  The last lines are the table of onediff_jax/plan/estimate.py: the least share of each.
"""

import argparse
import collections
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterator

FOLDER = tempfile.TemporaryDirectory()  # the compiler reads these as it is loaded, with JAX
os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={FOLDER.name} --xla_jf_dump_llo_text=true"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from onediff_jax.errors import InputError  # noqa: E402
from onediff_jax.ops import attention  # noqa: E402
from onediff_jax.ops.attention import flash as attention_flash  # noqa: E402
from onediff_jax.ops.attention import splash as attention_splash  # noqa: E402
from onediff_jax.plan.estimate import KERNEL_SHARES, kernel_flops  # noqa: E402
from onediff_jax.plan.hlo import program_of  # noqa: E402
from onediff_jax.plan.topologies import GENERATIONS, devices_of, topologies  # noqa: E402

HEADS, KEY_HEADS, WIDTH = 32, 8, 120
CAP = 30.0
# Queries, keys, and the cap: views of 256, 512 and 1,024 px within a row, and words of a prompt.
SIZES = ((512, 512, CAP), (1024, 1024, CAP), (4096, 4096, CAP), (1024, 300, None))


def main() -> None:
    """Prints every share as it is found, then the table."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    least: dict[str, dict[str, float]] = collections.defaultdict(dict)
    for generation in GENERATIONS:
        for backend in ("flash",) if generation == "v3" else ("flash", "splash"):
            for queries, keys, cap in SIZES:
                for kernel, share in shares_of(generation, backend, queries, keys, cap):
                    size = f"{queries:5} x {keys:5}{'' if cap is None else ', capped'}"
                    print(f"{generation:4} {kernel:24} {size:24} {share:6.1%}", flush=True)
                    found = least[kernel].get(generation, 1.0)
                    least[kernel][generation] = min(found, share)
    for kernel, found in least.items():
        print(kernel, [f"{found[g]:.2f}" if g in found else "-" for g in GENERATIONS])


def shares_of(
    generation: str, backend: str, queries: int, keys: int, cap: float | None
) -> Iterator[tuple[str, float]]:
    """Names of a backend's kernels, forward and backward, and the MFU of each."""
    for file in pathlib.Path(FOLDER.name).iterdir():
        file.unlink()
    machine = GENERATIONS[generation]
    steps = HEADS * blocks_of(backend, queries, keys)
    for kernel in compiled_kernels(generation, backend, queries, keys, cap):
        name = next(name for name in KERNEL_SHARES if re.search(name, kernel.source))
        # A core runs a step; v4 and v5p have two in a device.
        cores = machine.counted // machine.devices
        seconds = cycles_of(name) / machine.clock * steps / cores
        yield name, kernel_flops(kernel) / seconds / machine.peak


def blocks_of(backend: str, queries: int, keys: int) -> int:
    """Pairs of a block of queries and a block of keys."""
    if backend == "flash":
        sizes = attention_flash.Sizes.of(queries, keys)
        return sizes.query_blocks * sizes.key_blocks
    block = attention_splash.block_of
    return -(-queries // block(queries)) * -(-keys // block(keys))


def compiled_kernels(generation, backend, queries, keys, cap):
    """The kernels of attention's value and gradients, as the compiled program has them."""
    slices = (t for t in topologies().values() if t.generation is GENERATIONS[generation])
    device = devices_of(min(slices, key=lambda t: t.devices))[0]
    mesh = jax.sharding.Mesh([device], ("data",))

    def shape(*sizes, dtype=jnp.bfloat16):
        sharding = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    def total(q, k, v, q_segments, k_segments):
        settings = dict(softcap=cap, tiled=cap is None, backend=backend)
        return attention.attend(q, k, v, q_segments, k_segments, **settings).sum(dtype=jnp.float32)

    everywhere = PartitionSpec()
    gradients = jax.shard_map(
        jax.value_and_grad(total, (0, 1, 2)),
        mesh=mesh,
        in_specs=everywhere,
        out_specs=everywhere,
        check_vma=False,
    )
    arrays = [shape(1, queries, HEADS, WIDTH), *[shape(1, keys, KEY_HEADS, WIDTH)] * 2]
    segments = [shape(1, n, dtype=jnp.int32) for n in (queries, keys)]
    program = program_of(jax.jit(gradients).lower(*arrays, *segments).compile().as_text())
    return [i for i, _ in program.running() if 'target="tpu_custom_call"' in i.rest]


def cycles_of(name: str) -> int:
    """Cycles of one step of a kernel's grid: what is one loop deep in its bundles."""
    for file in sorted(pathlib.Path(FOLDER.name).glob("*-final_bundles.txt")):
        if re.search(name + r"(?!_capped)", file.name) and "TLP" not in file.name:
            return sum(
                1 + sum(map(int, re.findall(r"vdelay (\d+)", bundle)))
                for loops, bundle in re.findall(
                    r"^\s*0(?:x[0-9a-f]+)?\s+(?:[A-Z]{2})?:\s*((?:> ?)*)\{(.*)",
                    file.read_text(),
                    re.MULTILINE,
                )
                if loops.count(">") == 1
            )
    raise FileNotFoundError(f"the compiler wrote no bundles of {name} to {FOLDER.name}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"kernel_shares: {error}")
