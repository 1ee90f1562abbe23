"""Seconds of a program: work by kind, hidden and exposed communication."""

import dataclasses

import pytest

from onediff_jax.plan.estimate import Traffic, estimate_of
from onediff_jax.plan.hlo import program_of
from onediff_jax.plan.topologies import GENERATIONS

# A cycle is a second, and so is a byte over a link.
MACHINE = dataclasses.replace(
    GENERATIONS["v3"], clock=1.0, link=1.0, peak=100.0, memory_rate=1000.0
)
CYCLES = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'
GROUP = "replica_groups={{0,1}}"


def program(*lines: str, inside: str = ""):
    body = "\n".join(f"  {line}" for line in ("%x = s8[10]{0} parameter(0)", *lines))
    return program_of(f"HloModule m\n{inside}\nENTRY %main (x: s8[10]) -> s8[10] {{\n{body}\n}}\n")


def work(seconds: int, name: str = "copy.1", kind: str = "copy") -> str:
    return f"%{name} = s8[10]{{0}} {kind}(%x), {CYCLES % seconds}"


# Of a group of two, a ring moves half of 20 bytes: 10 seconds.
GATHER = f"%gather.1 = s8[20]{{0}} all-gather(%x), {GROUP}"
START = f"%start.1 = (s8[10]{{0}}, s8[20]{{0}}) all-gather-start(%x), {GROUP}"
DONE = "%done.1 = s8[20]{0} all-gather-done(%start.1)"
START2, DONE2 = (line.replace(".1", ".2") for line in (START, DONE))


@pytest.mark.parametrize(
    ("lines", "compute", "wire", "exposed"),
    [
        ([work(7)], 7, 0, 0),
        ([work(7), GATHER], 7, 10, 10),
        ([START, work(7), DONE], 7, 10, 3),  # seven of ten are hidden
        ([START, work(15), DONE], 15, 10, 0),
        ([START, START2, work(12), DONE, DONE2], 12, 20, 8),  # one link: the second waits
        ([START, work(4), GATHER, work(4), DONE], 8, 20, 16),  # behind the first on the link
        ([work(15), START, DONE], 15, 10, 10),  # what runs before hides nothing
    ],
)
def test_a_collective_hides_behind_what_runs_between_its_start_and_its_end(
    lines, compute, wire, exposed
):
    estimate = estimate_of(program(*lines), MACHINE)
    assert (estimate.compute, estimate.wire, estimate.exposed) == (compute, wire, exposed)
    assert estimate.seconds == compute + exposed


def test_loops_multiply_work_exposed_communication_and_collectives():
    loop = f"""
%body (s: s8[10]) -> s8[10] {{
  %x = s8[10]{{0}} parameter(0)
  {START}
  {work(6)}
  ROOT {DONE}
}}
%condition (s: s8[10]) -> pred[] {{
  %c = s32[] constant(3)
}}"""
    estimate = estimate_of(
        program("%w = s8[10] while(%x), condition=%condition, body=%body", GATHER, inside=loop),
        MACHINE,
    )
    assert (estimate.compute, estimate.wire, estimate.exposed) == (18, 40, 3 * 4 + 10)
    assert estimate.traffic == {"all-gather": Traffic(4, 80, 3)}
    assert estimate_of(program(GATHER), MACHINE, link=5.0).wire == 2


INSIDE = """
%product (p: s8[10]) -> s8[10] {
  %p = s8[10]{0} parameter(0)
  %m = s8[10]{0} multiply(%p, %p)
  ROOT %d = s8[10]{0} convolution(%m, %p)
}
%sum (p: s8[10]) -> s8[10] {
  %p = s8[10]{0} parameter(0)
  ROOT %m = s8[10]{0} reduce(%p, %p), to_apply=%add
}
%move (p: s8[10]) -> s8[10] {
  %p = s8[10]{0} parameter(0)
  ROOT %m = s8[10]{0} transpose(%p)
}
%nested (p: s8[10]) -> s8[10] {
  %p = s8[10]{0} parameter(0)
  ROOT %f = s8[10]{0} fusion(%p), kind=kLoop, calls=%product
}"""


def test_work_is_told_apart_by_what_is_inside_fusions():
    kinds = ("product", "sum", "move", "nested")
    lines = [
        f"%f.{i} = s8[10]{{0}} fusion(%x), calls=%{name}, {CYCLES % 10**i}"
        for i, name in enumerate(kinds)
    ]
    estimate = estimate_of(program(*lines, work(10**4, kind="sort"), inside=INSIDE), MACHINE)
    assert estimate.work == {
        "matmuls": 1001,
        "elementwise": 10,
        "copies": 100,
        "other": 10_000,
    }


def test_a_kernel_is_work_of_its_own_kind():
    call = '%k = f32[4] custom-call(%x), custom_call_target="tpu_custom_call", "flops":"600"'
    assert estimate_of(program(call, work(7)), MACHINE).work == {"kernels": 12, "copies": 7}
