"""Reading a compiled program's text: loops, calls, branches, fusions, collectives, kernels."""

import pytest

from onediff_jax.plan.hlo import (
    Collective,
    Instruction,
    bytes_of,
    collective_of,
    group_size,
    program_of,
)

NOTES = 'backend_config={"flag_configs":[],"window_config":{"estimated_cycles":"%d"}}'

# A loop of three turns by the compiler's note in one of five by its condition; each inner turn runs
# a fusion of 10 cycles, which holds a product that would count 1000.  Then a call of 100 and the
# longer of two branches, 7.
LOOPS = f"""HloModule jit_f, is_scheduled=true, entry_computation_layout={{()->f32[8]{{0}}}}

%fused (p.0: f32[8,8], p.1: f32[8,8]) -> f32[8,8] {{
  %p.0 = f32[8,8]{{1,0:T(8,128)}} parameter(0)
  %p.1 = f32[8,8]{{1,0:T(8,128)}} parameter(1)
  ROOT %dot.1 = f32[8,8]{{1,0:T(8,128)}} dot(%p.0, %p.1), {NOTES % 1000}
}}

%inner_body (s: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {{
  %s = (s32[], f32[8,8]{{1,0}}) parameter(0)
  %product.1 = f32[8,8]{{1,0}} fusion(%s, %s), kind=kOutput, calls=%fused, {NOTES % 10}
  ROOT %t = (s32[], f32[8,8]{{1,0}}) tuple(%s, %product.1)
}}

%inner_condition (s: (s32[], f32[8,8])) -> pred[] {{
  ROOT %less = pred[] constant(true)
}}

%outer_body (s: (s32[], /*index=1*/f32[8,8])) -> (s32[], f32[8,8]) {{
  %s = (s32[], f32[8,8]{{1,0}}) parameter(0)
  ROOT %while.1 = (s32[], f32[8,8]{{1,0}}) while(%s), condition=%inner_condition, body=%inner_body,\
 backend_config={{"known_trip_count":{{"n":"3"}}}}
}}

%outer_condition (s: (s32[], f32[8,8])) -> pred[] {{
  %s = (s32[], f32[8,8]{{1,0}}) parameter(0)
  %constant.5 = s32[]{{:T(256)}} constant(5)
  %counter = s32[] get-tuple-element(%s), index=0
  ROOT %less = pred[] compare(%counter, %constant.5), direction=LT
}}

%called (p: f32[8]) -> f32[8] {{
  ROOT %copy.1 = f32[8]{{0}} copy(%p), {NOTES % 100}
}}

%short (p: f32[8]) -> f32[8] {{
  ROOT %copy.2 = f32[8]{{0}} copy(%p), {NOTES % 3}
}}

%long (p: f32[8]) -> f32[8] {{
  ROOT %copy.3 = f32[8]{{0}} copy(%p), {NOTES % 7}
}}

ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  %while.2 = (s32[], f32[8,8]{{1,0}}) while(%x), condition=%outer_condition, body=%outer_body
  %call.1 = f32[8]{{0}} call(%x), to_apply=%called
  ROOT %choice = f32[8]{{0}} conditional(%x, %x, %x), branch_computations={{%short, %long}}
}}
"""


def test_loops_count_their_turns_and_what_is_inside_a_fusion_counts_nothing():
    program = program_of(LOOPS)
    assert {i.name: times for i, times in program.running() if i.cycles} == {
        "product.1": 15,
        "copy.1": 1,
        "copy.3": 1,
    }
    assert program.cycles() == 15 * 10 + 100 + 7


def test_a_loop_that_does_not_say_how_often_is_known_to_be_unknown():
    program = program_of(LOOPS.replace('{"known_trip_count":{"n":"3"}}', "{}"))
    loops = {i.name: program.trips(i) for c in program.computations.values() for i in c}
    assert (loops["while.1"], loops["while.2"]) == (None, 5)
    assert program.unknown_loops == ["while.1"]
    assert program_of(LOOPS).unknown_loops == []
    assert program.cycles() == 5 * 10 + 100 + 7


@pytest.mark.parametrize(
    ("result", "size"),
    [
        ("bf16[16,1,4,300,960]{4,3,2,1,0:T(8,128)(2,1)S(1)}", 16 * 4 * 300 * 960 * 2),
        ("(f32[3072]{0:T(1024)}, /*index=1*/pred[2,8], s4[7]{0:T(8)}, u32[])", 12288 + 16 + 4 + 4),
        ("f8e4m3fn[16]{0}", 16),
        ("(token[], f32[])", 4),
    ],
)
def test_bytes_of_types(result, size):
    assert bytes_of(result) == size


GROUPS = "replica_groups={{0,1,2,3},{4,5,6,7}}"
EXCHANGES = f"""HloModule jit_f, is_scheduled=true

%cut (p: bf16[64,8]) -> bf16[16,8] {{
  %p = bf16[64,8]{{1,0}} parameter(0)
  %all-reduce.9 = bf16[64,8]{{1,0}} all-reduce(%p), {GROUPS}, to_apply=%add
  ROOT %cut.1 = bf16[16,8]{{1,0}} dynamic-slice(%all-reduce.9, %p, %p)
}}

%wrapped (p: f32[16]) -> f32[64] {{
  %p = f32[16]{{0}} parameter(0)
  ROOT %all-gather.9 = f32[64]{{0}} all-gather(%p), replica_groups=[2,4]<=[8], dimensions={{0}}
}}

%begin (p: f32[16]) -> (f32[16], f32[64]) {{
  %p = f32[16]{{0}} parameter(0)
  %all-gather.8 = f32[64]{{0}} all-gather(%p), {GROUPS}, frontend_attributes={{chain_id="3"}}
  ROOT %c = (f32[16], f32[64]) custom-call(%all-gather.8), custom_call_target="AsyncCollectiveStart"
}}

%go_on (p: f32[16]) -> (f32[16], f32[64]) {{
  %p = f32[16]{{0}} parameter(0)
  %dot.9 = f32[64]{{0}} dot(%p, %p)
  %all-gather.7 = f32[64]{{0}} all-gather(%p), {GROUPS}, frontend_attributes={{chain_id="3"}}
  ROOT %c = (f32[16], f32[64]) tuple(%dot.9, %all-gather.7)
}}

%end (p: f32[16]) -> f32[64] {{
  %p = f32[16]{{0}} parameter(0)
  %all-gather.6 = f32[64]{{0}} all-gather(%p), {GROUPS}, frontend_attributes={{chain_id="3"}}
  ROOT %c = f32[64]{{0}} custom-call(%all-gather.6), custom_call_target="AsyncCollectiveDone"
}}

ENTRY %main (x: f32[16], y: bf16[64,8]) -> f32[64] {{
  %x = f32[16]{{0}} parameter(0)
  %y = bf16[64,8]{{1,0}} parameter(1)
  %all-gather.1 = f32[64]{{0}} all-gather(%x), channel_id=1, {GROUPS}, dimensions={{0}}
  %reduce-scatter.1 = f32[4]{{0}} reduce-scatter(%x), {GROUPS}, to_apply=%add
  %fusion.1 = bf16[16,8]{{1,0}} fusion(%y), kind=kCustom, calls=%cut
  %permute.1 = f32[16]{{0}} collective-permute(%x), source_target_pairs={{{{0,1}},{{1,2}}}}
  %all-reduce.1 = (f32[16]{{0}}, bf16[64,8]{{1,0}}) all-reduce(%x, %y), {GROUPS}, to_apply=%add
  %start.1 = (f32[16]{{0}}, f32[64]{{0}}) all-gather-start(%x), {GROUPS}, dimensions={{0}}
  %done.1 = f32[64]{{0}} all-gather-done(%start.1)
  %start.2 = ((f32[16]), f32[64], u32[]) async-start(%x), calls=%wrapped
  %done.2 = f32[64]{{0}} async-done(%start.2), calls=%wrapped
  %start.3 = (f32[16], f32[64]) fusion(%x), kind=kCustom, calls=%begin
  %beside.3 = (f32[16], f32[64]) fusion(%x), kind=kOutput, calls=%go_on, {NOTES % 50}
  %done.3 = f32[64]{{0}} fusion(%x), kind=kCustom, calls=%end
  ROOT %copy.1 = f32[64]{{0}} copy(%done.1), {NOTES % 9}
}}
"""


@pytest.mark.parametrize(
    ("kind", "rest", "devices"),
    [
        ("all-gather", "replica_groups={{0,1,2},{3,4,5}}", 3),
        ("all-reduce-start", "replica_groups=[8,32]<=[32,8]T(1,0)", 32),
        ("all-reduce", "replica_groups=mesh['axis_0'=32,'axis_1'=8] {'axis_1'}", 8),
        ("all-reduce", "replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0','axis_1'}", 16),
        ("all-reduce", "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", 4),
        ("collective-permute", "source_target_pairs={{0,1},{1,2},{2,0}}", 2),
    ],
)
def test_groups_are_read_in_every_spelling(kind, rest, devices):
    assert group_size(Instruction("x", kind, "f32[]", "", rest)) == devices


def test_groups_in_an_unknown_spelling_are_an_error():
    with pytest.raises(ValueError, match="no groups are known of x: replica_groups=all"):
        group_size(Instruction("x", "all-reduce", "f32[]", "", "replica_groups=all"))


def test_every_collective_is_found_once_with_its_kind_size_and_group():
    program = program_of(EXCHANGES)
    found = {i.name: collective_of(program, "main", i) for i, _ in program.running()}
    assert {name: each for name, each in found.items() if each} == {
        "all-gather.1": Collective("all-gather", 256, 4),
        "reduce-scatter.1": Collective("reduce-scatter", 64, 4),
        "fusion.1": Collective("reduce-scatter", 1024, 4),
        "permute.1": Collective("collective-permute", 64, 2),
        "all-reduce.1": Collective("all-reduce", 64 + 1024, 4),
        "start.1": Collective("all-gather", 256, 4, "start.1"),
        "done.1": Collective("all-gather", ends="start.1"),
        "start.2": Collective("all-gather", 256, 4, "start.2"),
        "done.2": Collective("all-gather", ends="start.2"),
        "start.3": Collective("all-gather", 256, 4, "chain 3"),
        "done.3": Collective("all-gather", ends="chain 3"),
    }


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-gather", 75),
        ("reduce-scatter", 75),
        ("all-to-all", 75),
        ("all-reduce", 150),
        ("collective-permute", 100),
    ],
)
def test_a_ring_of_four_moves_three_quarters_over_every_link(kind, sent):
    assert Collective(kind, 100, 4).sent == sent
