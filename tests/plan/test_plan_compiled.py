"""The compiler's account of a step's memory; here of a CPU's, whose account has the same form."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from onediff_jax.errors import InputError
from onediff_jax.plan import compiled as module
from onediff_jax.plan.compiled import allocated_bytes, compile_step, largest_tensors
from onediff_jax.plan.hlo import program_of

MIB = 2**20

BUFFERS = """BufferAssignment:
allocation 0: size 4194304, parameter 0, shape |f32[1024,1024]| at ShapeIndex {}, maybe-live-out:
 value: <1 x @0> (size=4194304,offset=0): f32[1024,1024]{1,0:T(8,128)}
 value: <2 sum.1{1} @0> (size=4194304,offset=0): f32[1024,1024]{1,0:T(8,128)}
allocation 1: size 1024, constant:
 value: <3 constant.1 @0> (size=1024,offset=0): s32[]{:T(256)}
allocation 2: size 117440512, color 1, preallocated-temp:
 value: <4 near.1 @1> (size=8388608,offset=0): f32[2048,1024]{1,0:T(8,128)S(1)}
allocation 3: size 6291456, preallocated-temp:
 value: <5 while.1{2} (phi) @0> (size=4194304,offset=0): bf16[2048,1024]{1,0:T(8,128)(2,1)}
 value: <6 product.1 @0> (size=4194304,offset=0): bf16[2048,1024]{1,0:T(8,128)(2,1)}
 value: <7 small.1 @0> (size=2097152,offset=4194304): f32[512,1024]{1,0:T(8,128)}
allocation 4: size 512, thread-local:
 value: <8 inner.1 @0> (size=512,offset=0): f32[128]{0:T(128)}
allocation 5: size 2048, output shape is |(f32[], f32[8])|, maybe-live-out:
 value: <9 tuple.1{} @0> (size=16,offset=0): (f32[], f32[8])
"""
PROGRAM = """HloModule m

ENTRY %main (x: f32[1024,1024]) -> f32[1024,1024] {
  %x = f32[1024,1024]{1,0} parameter(0), metadata={op_name="x"}
  %product.1 = bf16[2048,1024]{1,0} fusion(%x), metadata={op_name="jit(f)/layers/dot_general"}
}
"""


def test_main_memory_is_told_from_others_and_by_what_it_holds():
    assert {kind: sum(sizes) for kind, sizes in allocated_bytes(BUFFERS).items()} == {
        "parameter": 4 * MIB,
        "constant": 1024,
        "preallocated-temp": 6 * MIB,
        "thread-local": 512,
        "output": 2048,
    }


def test_the_largest_arrays_say_where_they_are_made():
    found = largest_tensors(BUFFERS, program_of(PROGRAM))
    assert [tuple(tensor) for tensor in found[:3]] == [
        (4 * MIB, "f32[1024,1024]", "x"),
        (4 * MIB, "bf16[2048,1024]", "jit(f)/layers/dot_general"),
        (2 * MIB, "f32[512,1024]", ""),
    ]


def test_a_step_is_compiled_and_its_memory_counted():
    def step(x):
        return x + 1, jnp.sin(x @ x.T).sum()

    shape = jax.ShapeDtypeStruct((512, 256), jnp.float32)
    jitted = jax.jit(step, donate_argnums=0)
    found = compile_step(jitted, (shape,))
    analysis = jitted.lower(shape).compile().memory_analysis()
    assert found.refusal == ""
    assert found.arguments == analysis.argument_size_in_bytes == 512 * 256 * 4
    # The sum is returned where its argument was, and the product is the largest array.
    assert found.results < 100
    assert found.largest[0].bytes == 512 * 512 * 4
    assert found.largest[0].source == "jit(step)/sin"
    least = (512 * 256 + 512 * 512) * 4
    assert least <= found.bytes < 1.5 * least
    assert any(i.kind in ("dot", "custom-call", "fusion") for i, _ in found.program.running())
    assert found.seconds > 0


class Refused:
    """A step that the compiler refuses after it has written down what it knows."""

    def __init__(self, message: str, writes: bool):
        self.message, self.writes = message, writes

    def lower(self, *arguments):
        return self

    def compile(self, compiler_options):
        if self.writes:
            for name, text in (("buffer-assignment", BUFFERS), ("after_optimizations", PROGRAM)):
                file = pathlib.Path(compiler_options["xla_dump_to"]) / f"m.1.{name}.txt"
                file.write_text(text)
        raise jax.errors.JaxRuntimeError(self.message)


def test_a_step_that_does_not_fit_has_its_memory_and_largest_arrays():
    message = "RESOURCE_EXHAUSTED: Ran out of memory\non HBM"
    found = compile_step(Refused(message, True), ())
    assert found.refusal == "RESOURCE_EXHAUSTED: Ran out of memory on HBM"
    assert found.bytes == 10 * MIB + 1024 + 512 + 2048
    assert (found.arguments, found.results) == (4 * MIB, 2048)
    assert len(found.largest) > 3


@pytest.mark.parametrize(
    ("message", "writes"),
    [("INTERNAL: Bad lhs type. E2001", True), ("RESOURCE_EXHAUSTED: out of memory", False)],
)
def test_any_other_refusal_is_an_error_in_one_line(message, writes):
    with pytest.raises(InputError, match="the TPU compiler refuses the step: " + message):
        compile_step(Refused(message, writes), ())


def test_what_the_compiler_writes_is_not_left_behind(monkeypatch):
    folders = []
    dump_in = module.dump_in
    monkeypatch.setattr(
        module, "dump_in", lambda folder, name: folders.append(folder) or dump_in(folder, name)
    )
    compile_step(jax.jit(jnp.sin), (jax.ShapeDtypeStruct((8,), jnp.float32),))
    assert folders and not any(pathlib.Path(folder).exists() for folder in folders)
