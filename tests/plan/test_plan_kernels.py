"""Seconds of kernels: by what they note or by their shapes, at the share that each reaches."""

import dataclasses

import pytest

from onediff_jax.ops.attention import flash as attention_flash
from onediff_jax.plan.estimate import (
    DEVICE_KINDS,
    KERNEL_SHARES,
    kernel_flops,
    kernel_seconds,
    kernel_share,
)
from onediff_jax.plan.hlo import Instruction
from onediff_jax.plan.topologies import GENERATIONS

MACHINE = dataclasses.replace(GENERATIONS["v5e"], peak=100.0, memory_rate=1000.0)
NOTED = 'backend_config={"cost_estimate":{"flops":"%d","bytes_accessed":"%d"}}'


def kernel(rest: str, result: str = "f32[4]", source: str = "f/pallas_call") -> Instruction:
    rest = f', custom_call_target="tpu_custom_call", metadata={{op_name="{source}"}}, {rest}'
    return Instruction("kernel.1", "custom-call", result, "%x", rest)


def test_a_kernel_takes_what_it_notes_at_half_of_peak_or_at_the_rate_of_the_memory():
    assert kernel_seconds(kernel(NOTED % (600, 0)), MACHINE) == 600 / 50
    assert kernel_seconds(kernel(NOTED % (600, 20_000)), MACHINE) == 20
    silent = kernel("operand_layout_constraints={f32[1000]{0}, f32[500]{0}}")
    assert kernel_seconds(silent, MACHINE) == 4 * 1504 / 1000


@pytest.mark.parametrize(
    ("part", "cap", "keys", "share"),
    [
        ("forward", 30.0, 1024, 0.67),
        ("backward", 30.0, 1024, 0.82),
        ("forward", 30.0, 512, 0.68),
        ("backward", 30.0, 640, 0.83),
        ("forward", None, 300, 0.47),
        ("backward", None, 1024, 0.83),
    ],
)
def test_our_own_kernels_are_known_by_their_names(part, cap, keys, share):
    source = f"jit(f)/{attention_flash.named(part, cap, keys)}/pallas_call"
    seconds = kernel_seconds(kernel(NOTED % (600, 0), source=source), MACHINE)
    assert seconds == pytest.approx(600 / (100 * share))


@pytest.mark.parametrize(
    ("generation", "share"),
    [("v3", 0.64), ("v4", 0.51), ("v5e", 0.83), ("v5p", 0.80), ("v6e", 0.27)],
)
def test_a_kernel_has_a_share_on_each_generation(generation, share):
    held = kernel(NOTED % (600, 0), source="jit(f)/flash_backward_capped_512/pallas_call")
    assert kernel_share(held, GENERATIONS[generation]) == share


def test_every_generation_has_a_share_of_every_kernel():
    assert {generation.kind for generation in GENERATIONS.values()} == set(DEVICE_KINDS)
    for shares in KERNEL_SHARES.values():
        assert len(shares) == len(DEVICE_KINDS)
        assert all(0 < share < 1 for share in shares)


@pytest.mark.parametrize(
    ("name", "results", "matmuls", "share"),
    [
        ("splash_mha_fwd_residuals", 4, 2, 0.38),
        ("splash_mqa_fwd_no_residuals", 4, 2, 0.38),
        ("splash_mha_dkv_no_residuals", 4, 4, 0.81),
        ("splash_mha_dkv_no_residuals", 5, 5, 0.81),  # the fused one returns a gradient more
        ("splash_mha_dq_no_residuals", 2, 3, 0.66),
        ("some_other_kernel", 4, 0, 0.5),
    ],
)
def test_splash_attention_is_counted_by_its_shapes(name, results, matmuls, share):
    operands = "s8[1,2]{1,0}, bf16[3,8,64,120]{3,2,1,0}, bf16[3,2,256,120]{3,2,1,0}, f32[9]{0}"
    held = kernel(
        f"operand_layout_constraints={{{operands}}}",
        f"({', '.join(['f32[5]'] * results)})",
        f"jit(f)/vmap(static_sparsity_splash)/{name}/pallas_call",
    )
    flops = 2 * matmuls * (3 * 8 * 64) * 256 * 120
    assert kernel_flops(held) == flops
    fast = dataclasses.replace(MACHINE, memory_rate=1e15)
    assert kernel_seconds(held, fast) == pytest.approx(flops / (100 * share), abs=1e-6)
