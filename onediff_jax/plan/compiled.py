"""A step compiled for a slice: its program, its memory, and its largest arrays."""

import pathlib
import re
import tempfile
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

from onediff_jax.errors import InputError
from onediff_jax.plan.hlo import Program, program_of


class Tensor(NamedTuple):
    """An array in a device's memory."""

    bytes: int
    shape: str
    source: str  # where in the traced program it is made


class Compiled(NamedTuple):
    """What the compiler made of a step, for one device; of a step that does not fit as well."""

    program: Program
    seconds: float  # that tracing and compiling took
    bytes: int  # of memory
    arguments: int  # bytes among them that hold arguments
    results: int  # bytes among them that hold results, where they are not in arguments' places
    largest: tuple[Tensor, ...]
    refusal: str  # why it does not fit; empty where it does


def compile_step(step: Any, arguments: Iterable[Any], count: int = 10) -> Compiled:
    """Compiles the step, a jitted function, for arguments that say where they live.

    Lists the `count` largest arrays.  Raises InputError where the compiler refuses the step for
    another reason than memory.
    """
    begun = time.perf_counter()
    refusal = ""
    with tempfile.TemporaryDirectory() as folder:
        # What the compiler writes down is all there is of a program that does not fit, and of one
        # that does it is the better account: `memory_analysis` counts returned arrays twice.
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            text = step.lower(*arguments).compile(compiler_options=options).as_text()
        except jax.errors.JaxRuntimeError as error:
            refusal = " ".join(str(error).split())
            text = dump_in(folder, "after_optimizations")
            if "memory" not in refusal or not text:
                raise InputError(f"the TPU compiler refuses the step: {refusal[:300]}") from error
        buffers = dump_in(folder, "buffer-assignment")
    seconds = time.perf_counter() - begun
    program = program_of(text)
    sizes = {kind: sum(found) for kind, found in allocated_bytes(buffers).items()}
    return Compiled(
        program,
        seconds,
        sum(sizes.values()),
        sizes.get("parameter", 0),
        sizes.get("output", 0),
        tuple(largest_tensors(buffers, program)[:count]),
        refusal,
    )


def dump_in(folder: str, name: str) -> str:
    """The text that the compiler dumped under a name; empty where it dumped none."""
    files = sorted(pathlib.Path(folder).glob(f"*{name}.txt"))
    return files[-1].read_text() if files else ""


def allocated_bytes(buffers: str) -> dict[str, list[int]]:
    """Sizes in bytes of the pieces of a device's main memory, by what they hold.

    Pieces of other memories have a color.
    """
    found: dict[str, list[int]] = {}
    for size, kind in re.findall(r"^allocation \d+: size (\d+), ([\w\-]+)", buffers, re.MULTILINE):
        if kind != "color":
            found.setdefault(kind, []).append(int(size))
    return found


def largest_tensors(buffers: str, program: Program) -> list[Tensor]:
    """Arrays that lie in pieces of main memory, largest first; of those in one place, one."""
    sources = {i.name: i.source for body in program.computations.values() for i in body}
    found: dict[tuple[str, str], Tensor] = {}
    for allocation in re.split(r"^allocation ", buffers, flags=re.MULTILINE)[1:]:
        number, described = allocation.split(":", 1)
        if re.match(r" size \d+, color", described):
            continue
        values = re.findall(
            r"value: <\d+ ([\w.\-]+)\S* .*?\(size=(\d+),offset=(\d+)\): (\S+)", described
        )
        for name, size, offset, shape in values:
            held = Tensor(int(size), shape.split("{")[0], sources.get(name, ""))
            before = found.get((number, offset))
            if before is None or (held.bytes, held.source) > (before.bytes, before.source):
                found[number, offset] = held
    return sorted(found.values(), key=lambda tensor: -tensor.bytes)
