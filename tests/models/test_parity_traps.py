"""What is easily got wrong in Next-DiT: every such mistake, made in the PyTorch module, is seen.

Ours and the module agree until the module is bent; then they differ by more than a hundred times
what test_parity.py allows.  So its comparisons would see the same mistake in ours.
"""

import functools
import math

import pytest
from drawn import relative_error
from parity import FORWARD, SMALL, drawn_inputs, module_of, module_velocity, tensors_of, velocity
from released import modeling, torch
from torch.nn import Identity
from torch.nn.functional import layer_norm

pytestmark = pytest.mark.slow  # of the witness itself

HEAD, GROUP = SMALL.width // SMALL.heads, SMALL.heads // SMALL.kv_heads
INPUTS = drawn_inputs((2, 3, 4, 6))
# Scores so large that a cap of 30 bends them.
LOUD = {n: x * (5 if "q_norm" in n else 1) for n, x in tensors_of(SMALL).items()}
# Whatever a norm is given has a variance near its epsilon: what it reads of is small.
FAINT_INPUTS = INPUTS._replace(states=INPUTS.states * 2e-3)
READ = ("wq", "wk", "wk_y", "wo", "w2", "attention_norm2", "ffn_norm2", "x_embedder")
FAINT = {n: x * (2e-3 if n.split(".")[-2] in READ else 1) for n, x in tensors_of(SMALL).items()}


@functools.cache
def ours(faint: bool = False):
    return velocity(SMALL, FAINT, FAINT_INPUTS) if faint else velocity(SMALL, LOUD, INPUTS)


# --- ways to bend the module ----------------------------------------------------------------------


def replace(patch, name, change):
    """Has the module call `change` with the function of that name and its arguments."""
    patch.setattr(modeling, name, functools.partial(change, getattr(modeling, name)))


def changed_arguments(module, change):
    """Has the module read other (latents, timesteps, text_states, text_mask)."""
    module.register_forward_pre_hook(lambda _, arguments: change(*arguments))


def reordered(module, chunks):
    """Modulations in another order."""
    for layer in module.layers:
        for values in layer.adaLN_modulation[1].parameters():
            values.data = torch.cat([values.data.chunk(4)[i] for i in chunks])


def flattened(module, *axes):
    """Patches (row, column, channel) with their axes in another order."""
    order = torch.arange(SMALL.features).reshape(2, 2, -1).permute(axes).flatten()
    linear = module.final_layer["linear"]
    module.x_embedder.weight.data = module.x_embedder.weight.data[:, order]
    linear.weight.data, linear.bias.data = linear.weight.data[order], linear.bias.data[order]


# --- mistakes -------------------------------------------------------------------------------------


def keys_are_tiled(module, patch):
    def change(attention, queries, keys, values, cap):
        keys, values = (y[:, ::GROUP].repeat(1, GROUP, 1, 1) for y in (keys, values))
        return attention(queries, keys, values, cap)

    replace(patch, "attention", change)


def text_keys_are_repeated(module, patch):
    def change(attention, queries, keys, values, mask):
        keys, values = (
            y[:, : SMALL.kv_heads].repeat_interleave(GROUP, dim=1) for y in (keys, values)
        )
        return attention(queries, keys, values, mask)

    replace(patch, "text_attention", change)


def text_keys_are_not_normed(module, patch):
    for layer in module.layers:
        layer.attention.ky_norm = Identity()


def heads_are_normed_apart(module, patch):
    def apart(norm, x):
        x = layer_norm(x.unflatten(-1, (-1, HEAD)), (HEAD,), eps=norm.eps).flatten(-2)
        return x * norm.weight + norm.bias

    for layer in module.layers:
        for norm in (layer.attention.q_norm, layer.attention.k_norm):
            norm.forward = functools.partial(apart, norm)


def sines_come_first(module, patch):
    replace(patch, "timestep_embedding", lambda features, times: features(times).roll(128, -1))


def times_end_at_one(module, patch):
    changed_arguments(module, lambda x, times, *text: (x, times / 1000, *text))


def all_views_have_the_time_of_the_first(module, patch):
    changed_arguments(module, lambda x, times, *text: (x, times[:, :1].expand_as(times), *text))


def all_views_have_the_mean_time(module, patch):
    changed_arguments(
        module, lambda x, times, *text: (x, times.mean(1, True).expand_as(times), *text)
    )


def channels_are_slowest_in_a_patch(module, patch):
    flattened(module, 2, 0, 1)


def columns_come_before_rows_in_a_patch(module, patch):
    flattened(module, 1, 0, 2)


def text_is_added_after_wo(module, patch):
    found = []

    def change(attention, *arguments):
        found.append(attention(*arguments))
        return torch.zeros_like(found[-1])

    def add(attention, _, out):
        gate = torch.tanh(attention.gate).repeat_interleave(HEAD)
        return out + gate * attention.wo(found.pop().transpose(1, 2).flatten(2))

    replace(patch, "text_attention", change)
    for layer in module.layers:
        layer.attention.register_forward_hook(add)


def text_gates_have_no_tanh(module, patch):
    tanh = torch.tanh
    patch.setattr(torch, "tanh", lambda x: x if x.ndim == 1 else tanh(x))


def block_gates_have_no_tanh(module, patch):
    tanh = torch.tanh
    patch.setattr(torch, "tanh", lambda x: x if x.ndim == 3 else tanh(x))


def rotary_pairs_are_halves_of_a_head(module, patch):
    def change(_, x, rotation):
        turned = torch.complex(*x.chunk(2, dim=-1)) * rotation
        return torch.cat([turned.real, turned.imag], dim=-1)

    replace(patch, "rotated", change)


def rotary_axes_are_view_column_row(module, patch):
    def change(rotations, *arguments):
        return rotations(*arguments).unflatten(-1, (3, -1))[:, [0, 2, 1]].flatten(-2)

    replace(patch, "rotations", change)


def text_is_read_by_queries_without_places(module, patch):
    plain = []

    def keep(rotated, x, rotation):
        plain.append(x)  # queries, then keys
        return rotated(x, rotation)

    replace(patch, "rotated", keep)
    replace(patch, "text_attention", lambda attention, _, *others: attention(plain[-2], *others))


def scales_come_before_gates(module, patch):
    reordered(module, (0, 2, 1, 3))


def gates_come_before_scales(module, patch):
    reordered(module, (1, 0, 3, 2))


def feed_forward_is_modulated_first(module, patch):
    reordered(module, (2, 3, 0, 1))


def norms_multiply_by_one_and_their_weight(module, patch):
    for part in module.modules():
        if isinstance(part, modeling.RMSNorm):
            part.weight.data += 1


def norms_do_not_multiply(module, patch):
    for part in module.modules():
        if isinstance(part, modeling.RMSNorm):
            part.weight.data[:] = 1


def results_are_not_normed(module, patch):
    for layer in module.layers:
        layer.attention_norm2 = layer.ffn_norm2 = Identity()


def the_mean_of_text_counts_padding(module, patch):
    mean = torch.from_numpy(INPUTS.states).mean(1)
    module.y_embedder.register_forward_pre_hook(lambda *_: mean)


def the_mean_of_text_is_not_normed(module, patch):
    module.y_embedder[0] = Identity()


def padding_of_text_is_read(module, patch):
    changed_arguments(module, lambda *inputs: (*inputs[:3], torch.ones_like(inputs[3])))


def nothing_caps_scores(module, patch):
    module.softcap = None


def scores_of_text_are_capped(module, patch):
    def change(_, queries, keys, values, mask):
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(HEAD)
        scores = SMALL.softcap * torch.tanh(scores / SMALL.softcap)
        return scores.masked_fill(~mask[:, None, None], -math.inf).softmax(-1) @ values

    replace(patch, "text_attention", change)


def w1_and_w3_are_swapped(module, patch):
    for layer in module.layers:
        layer.feed_forward.w1, layer.feed_forward.w3 = layer.feed_forward.w3, layer.feed_forward.w1


MISTAKES = (
    keys_are_tiled,
    text_keys_are_repeated,
    text_keys_are_not_normed,
    heads_are_normed_apart,
    sines_come_first,
    times_end_at_one,
    all_views_have_the_time_of_the_first,
    all_views_have_the_mean_time,
    channels_are_slowest_in_a_patch,
    columns_come_before_rows_in_a_patch,
    text_is_added_after_wo,
    text_gates_have_no_tanh,
    block_gates_have_no_tanh,
    rotary_pairs_are_halves_of_a_head,
    rotary_axes_are_view_column_row,
    text_is_read_by_queries_without_places,
    scales_come_before_gates,
    gates_come_before_scales,
    feed_forward_is_modulated_first,
    norms_multiply_by_one_and_their_weight,
    norms_do_not_multiply,
    results_are_not_normed,
    the_mean_of_text_counts_padding,
    the_mean_of_text_is_not_normed,
    padding_of_text_is_read,
    nothing_caps_scores,
    scores_of_text_are_capped,
    w1_and_w3_are_swapped,
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_seen(mistake, monkeypatch):
    module = module_of(SMALL, LOUD)
    assert relative_error(ours(), module_velocity(module, INPUTS)) < FORWARD
    mistake(module, monkeypatch)
    assert relative_error(ours(), module_velocity(module, INPUTS)) > 100 * FORWARD


@pytest.mark.parametrize(
    ("name", "epsilon"),
    [
        ("attention.q_norm", 1e-5),
        ("attention.k_norm", 1e-5),
        ("attention.ky_norm", 1e-6),
        ("attention_norm1", 1e-5),
        ("attention_norm2", 1e-5),
        ("ffn_norm1", 1e-5),
        ("ffn_norm2", 1e-5),
        ("attention_y_norm", 1e-5),
        ("y_embedder.0", 1e-6),
        ("final", 1e-6),
    ],
)
def test_another_epsilon_is_seen(name, epsilon, monkeypatch):
    module, other = module_of(SMALL, FAINT), 1e-11 / epsilon
    assert relative_error(ours(faint=True), module_velocity(module, FAINT_INPUTS)) < FORWARD
    norms = [norm for path, norm in module.named_modules() if path.endswith(name)]
    for norm in norms:
        assert norm.eps == epsilon
        norm.eps = other
    if not norms:  # the last one, which is a function
        replace(monkeypatch, "layer_norm", lambda norm, x, shape, eps: norm(x, shape, eps=other))
    assert relative_error(ours(faint=True), module_velocity(module, FAINT_INPUTS)) > 100 * FORWARD
