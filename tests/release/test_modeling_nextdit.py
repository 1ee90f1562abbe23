"""The network of the PyTorch module: against its description, by hand."""

import ast
import math
import sys

import numpy as np
import pytest
from released import BATCH, FILE, RELEASED, TINY, VIEWS, close, inputs, modeling, network, torch

pytestmark = pytest.mark.slow  # of the witness itself


def first_block_reads(model, *arguments, **settings):
    """What the first block is given: tokens, condition, text, (rotation, mask, cap)."""
    seen = []
    hook = model.layers[0].register_forward_pre_hook(lambda _, given: seen.append(given))
    model(*arguments, **settings)
    hook.remove()
    return seen[0]


# The released size.


def test_the_file_is_small_and_needs_torch_and_safetensors_alone():
    tree = ast.parse(FILE.read_text())
    names = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    others = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert others == {"torch", "safetensors"}
    assert not names & {"pickle", "marshal", "shelve"}
    assert len(FILE.read_text().splitlines()) < 350


def test_the_released_configuration_gives_the_released_tensors():
    with torch.device("meta"):
        sizes = {n: p.numel() for n, p in modeling.NextDiT(**RELEASED).state_dict().items()}
    block = [f"attention.{n}.weight" for n in ("wq", "wk", "wv", "wk_y", "wv_y", "wo")]
    block += [
        f"attention.{n}.{p}" for n in ("q_norm", "k_norm", "ky_norm") for p in ("weight", "bias")
    ]
    block += [f"feed_forward.w{n}.weight" for n in (1, 2, 3)] + ["attention.gate"]
    block += [f"{n}{i}.weight" for n in ("attention_norm", "ffn_norm") for i in (1, 2)]
    block += ["attention_y_norm.weight"] + [f"adaLN_modulation.1.{p}" for p in ("weight", "bias")]
    around = ["x_embedder", "t_embedder.mlp.0", "t_embedder.mlp.2", "y_embedder.0", "y_embedder.1"]
    around += ["final_layer.linear", "final_layer.adaLN_modulation.1"]
    names = {f"layers.{i}.{name}" for i in range(16) for name in block}
    assert set(sizes) == names | {f"{n}.{p}" for n in around for p in ("weight", "bias")}
    assert len(sizes) == 382 and sum(sizes.values()) == 2_800_389_184
    parts = {
        "x_embedder": 249_600, "t_embedder": 1_312_768, "y_embedder": 2_102_272,
        "layers.0.": 174_533_920, "layers.0.attention.": 40_807_712,
        "layers.0.feed_forward": 117_964_800, "layers.0.adaLN_modulation": 15_744_000,
        "layers.": 2_792_542_720, "final_layer": 4_181_824,
    }  # fmt: skip
    for part, size in parts.items():
        assert sum(s for name, s in sizes.items() if name.startswith(part)) == size, part


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_heads": 6}, "num_heads=6"),
        ({"num_heads": 32}, "num_heads=32"),
        ({"num_kv_heads": 3}, "num_kv_heads=3"),
        ({"norm_type": "layer"}, "norm_type='layer'"),
        ({"pred_sigma": True}, "pred_sigma=True"),
    ],
)
def test_another_network_is_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        modeling.NextDiT(**TINY | changes)


def test_the_inner_width_is_rounded_up():
    for multiplier, multiple, width in [(None, 100, 300), (1.3, 100, 400), (1.3, 1, 332)]:
        changes = {"ffn_dim_multiplier": multiplier, "multiple_of": multiple}
        block = modeling.NextDiT(**TINY | changes).layers[0]
        assert block.feed_forward.w1.weight.shape == (width, 96)


# Patches, time, positions.


@pytest.mark.parametrize("patch", [(1, 2, 2), (3, 1, 2)])
def test_a_token_is_a_patch_with_channels_fastest(patch):
    latents, (pt, ph, pw) = inputs()[0], patch
    tokens, at = modeling.patchify(latents, patch), 0
    grid = (3 // pt, 4 // ph, 6 // pw)
    for t, r, c in np.ndindex(grid):
        features = [
            latents[:, t * pt + i, channel, r * ph + j, c * pw + k]
            for i in range(pt) for j in range(ph) for k in range(pw) for channel in range(4)
        ]  # fmt: skip
        assert torch.equal(tokens[:, at], torch.stack(features, dim=-1))
        at += 1
    assert tokens.shape[1] == at
    assert torch.equal(modeling.unpatchify(tokens, grid, patch), latents)


def test_a_time_is_embedded_by_cosines_then_sines():
    features = modeling.timestep_embedding(torch.tensor([0.0, 700.0], dtype=torch.float64))
    assert features.shape == (2, 256)
    assert features[0].tolist() == [1.0] * 128 + [0.0] * 128
    for k in (0, 1, 127):
        angle = 700 * 10_000 ** (-k / 128)
        assert close(features[1, k], math.cos(angle)) and close(
            features[1, 128 + k], math.sin(angle)
        )


def test_times_of_examples_of_views_and_of_values_are_one_thing():
    model, (latents, times, *text) = network(), inputs()
    by_view = model(latents, times, *text)
    full = times[..., None, None, None].expand(latents.shape)
    assert torch.equal(model(latents, full, *text), by_view)
    same = times[:, :1].expand(-1, VIEWS)
    assert torch.equal(model(latents, times[:, 0], *text), model(latents, same, *text))
    assert not close(model(latents, same, *text), by_view, 1e-2)
    for other in (times[0], times[0, 0], full[..., 0, 0], full[..., 0]):
        with pytest.raises(ValueError, match=r"timesteps: .*\(2, 3, 4, 4, 6\), found \("):
            model(latents, other, *text)


def test_a_token_has_the_mean_time_of_its_values():
    model, (latents, times, *text) = network(), inputs()
    full = times[..., None, None, None].expand(latents.shape)
    draw = torch.rand(BATCH, VIEWS, 4, 2, 3, generator=torch.Generator().manual_seed(3))
    ripple = 40 * draw.repeat_interleave(2, 3).repeat_interleave(2, 4).double()
    ripple[..., 1::2] *= -1  # of two columns, hence of a patch, the sum is zero
    assert close(model(latents, full + ripple, *text), model(latents, times, *text))


def test_the_condition_is_time_plus_the_mean_of_the_text():
    model, (latents, times, states, mask) = network(), inputs()
    values = {n: v.numpy() for n, v in model.state_dict().items()}

    def linear(name, x):
        return x @ values[f"{name}.weight"].T + values[f"{name}.bias"]

    angles = times.numpy()[..., None] * 10_000 ** (-np.arange(128) / 128)
    x = linear("t_embedder.mlp.0", np.concatenate([np.cos(angles), np.sin(angles)], -1))
    time = linear("t_embedder.mlp.2", x / (1 + np.exp(-x)))
    means = np.stack([states[0].mean(0), states[1, :3].mean(0)])
    centred = means - means.mean(-1, keepdims=True)
    norm = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-6)
    norm = norm * values["y_embedder.0.weight"] + values["y_embedder.0.bias"]
    expected = time + linear("y_embedder.1", norm)[:, None]
    condition = first_block_reads(model, latents, times, states, mask)[1]
    assert close(condition, np.repeat(expected, 6, axis=1))  # six tokens a view


def test_scores_depend_on_relative_positions_only():
    table = modeling.rotations((7, 6, 5), 12, torch.zeros((), dtype=torch.float64))
    table = table.reshape(7, 6, 5, 6)
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 12, generator=draw, dtype=torch.float64)

    def score(at, other):
        return (modeling.rotated(q, table[at]) * modeling.rotated(k, table[other])).sum()

    assert close(score((1, 2, 0), (3, 0, 1)), score((4, 5, 3), (6, 3, 4)))
    for other in [(4, 0, 1), (3, 1, 1), (3, 0, 2)]:
        assert not close(score((1, 2, 0), (3, 0, 1)), score((1, 2, 0), other), 1e-3)


def test_pairs_are_adjacent_and_turn_by_view_then_row_then_column():
    table = modeling.rotations((3, 4, 5), 12, torch.zeros((), dtype=torch.float64))
    x = torch.arange(1.0, 13.0, dtype=torch.float64).reshape(1, 1, 1, 12)
    for n, position in enumerate(np.ndindex(3, 4, 5)):
        turned = modeling.rotated(x, table[n])[0, 0, 0]
        for pair in range(6):
            angle = position[pair // 2] * 10_000 ** (-(pair % 2) / 2)
            whole = complex(2 * pair + 1, 2 * pair + 2) * complex(math.cos(angle), math.sin(angle))
            assert close(turned[2 * pair], whole.real) and close(turned[2 * pair + 1], whole.imag)


def test_below_the_watershed_positions_shrink_and_above_it_the_base_grows():
    model, arguments = network(), list(inputs(rows=12))
    arguments[1] = torch.tensor([[100.0, 200.0, 300.0], [1.0, 2.0, 3.0]], dtype=torch.float64)

    def turns(**settings):
        return first_block_reads(model, *arguments, **settings)[3][0].reshape(3, 6, 3, 6)

    plain = turns()
    shrunk = turns(scale_factor=2.0, scale_watershed=301.0)
    assert close(shrunk[::2, ::2, ::2], plain[:2, :3, :2])
    grown = turns(scale_factor=2.0, scale_watershed=300.0)
    for n, at in enumerate([(1, 0, 0), (0, 1, 0), (0, 0, 1)]):
        angles = grown[at][2 * n : 2 * n + 2].angle()
        assert close(angles, [1.0, 20_000**-0.5])


def test_positions_end_where_the_configuration_says():
    model = network(rotary_max_length=3, rotary_max_length_t=4)
    _, times, *text = inputs()
    for views, rows, columns, fits in [(4, 6, 6, 1), (5, 6, 6, 0), (4, 8, 6, 0), (4, 6, 8, 0)]:
        latents = torch.zeros(BATCH, views, 4, rows, columns, dtype=torch.float64)
        if fits:
            assert model(latents, times[:, 0], *text).shape == latents.shape
        else:
            with pytest.raises(ValueError, match=r"at most \(4, 3, 3\) patches"):
                model(latents, times[:, 0], *text)
    with pytest.raises(ValueError, match=r"at most \(128, 128, 128\).*found \(2, 129, 4, 2, 2\)"):
        network()(torch.zeros(BATCH, 129, 4, 2, 2), times[:, 0], *text)
    for shape in [(2, 4, 6, 6), (2, 1, 3, 6, 6), (2, 1, 4, 5, 6), (2, 1, 4, 6, 5)]:
        with pytest.raises(ValueError, match=r"latents: expected \(B, F, 4, H, W\)"):
            model(torch.zeros(shape), times[:, 0], *text)


def test_closed_blocks_leave_the_patches_to_the_final_layer():
    model, (latents, times, *text) = network(), inputs()
    for layer in model.layers:
        for values in layer.adaLN_modulation[1].parameters():
            values.data[:] = 0
    _, condition, *_ = first_block_reads(model, latents, times, *text)
    final = model.final_layer
    x = model.x_embedder(modeling.patchify(latents, (1, 2, 2)))
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
    modulation = final["adaLN_modulation"][1]
    scale = condition * torch.sigmoid(condition) @ modulation.weight.T + modulation.bias
    x = x * (1 + scale) @ final["linear"].weight.T + final["linear"].bias
    found = model(latents, times, *text)
    assert close(modeling.patchify(found, (1, 2, 2)), x)


# Text, views, examples.


def test_text_has_no_order_and_its_padding_is_never_read():
    model, (latents, times, states, mask) = network(), inputs()
    found = model(latents, times, states, mask)
    states[1, 3:] = torch.nan
    assert torch.equal(model(latents, times, states, mask.int()), found)
    alone = model(latents[1:], times[1:], states[1:, :3], torch.ones(1, 3))
    assert close(alone, found[1:])
    order = [3, 1, 4, 0, 2]
    assert close(model(latents, times, states[:, order], mask[:, order]), found)
    assert not close(model(latents, times, states.flip(2), mask), found, 1e-3)


def test_without_any_text_its_attention_and_its_mean_are_zero():
    model, (latents, times, states, mask) = network(), inputs()
    mask[1] = False
    found = model(latents, times, states, mask)
    assert found.isfinite().all()
    zero = torch.zeros(1, 10, dtype=torch.float64)
    condition = first_block_reads(model, latents, times, states, mask)[1][1]
    time = first_block_reads(model, latents, times, states, ~mask)[1][1]
    pooled = [model.y_embedder(y) for y in (zero, states[1].mean(0, keepdim=True))]
    assert close(condition - pooled[0], time - pooled[1])
    for layer in model.layers:
        layer.attention.gate.data += 1
    gated = model(latents, times, states, mask)
    assert torch.equal(gated[1], found[1]) and not close(gated[0], found[0], 1e-3)


def test_views_see_one_another_and_examples_do_not():
    model, (latents, times, states, mask) = network(), inputs()
    found = model(latents, times, states, mask)
    swapped = model(latents.flip(0), times.flip(0), states.flip(0), mask.flip(0))
    assert close(swapped, found.flip(0))
    other = latents.clone()
    other[0, 2] += 1
    changed = (model(other, times, states, mask) - found).abs().amax(dim=(2, 3, 4)) > 1e-6
    assert changed.tolist() == [[True] * 3, [False] * 3]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05), (torch.float16, 0.02)]
)
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_types_agree(dtype, tolerance, softcap):
    latents, times, states, mask = inputs()
    exact = network(softcap=softcap)(latents, times, states, mask)
    model = network(dtype, softcap=softcap)
    found = model(latents.to(dtype), times, states.to(dtype), mask)
    assert found.dtype == dtype
    assert (found - exact).abs().max() < tolerance * exact.abs().max()
    assert model(latents.float(), times, states, mask).dtype == torch.float32
