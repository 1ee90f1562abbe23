"""Our Next-DiT and the PyTorch module of tools/released: equal weights, equal results.

Errors are the norm of the difference over the norm, of every tensor on its own.
"""

import dataclasses

import numpy as np
import pytest
from drawn import relative_error
from nextdit_witnesses import FILE, kept
from parity import (
    FORWARD,
    GRADIENT,
    SAMPLED,
    SMALL,
    Trajectory,
    applied,
    asked_of,
    drawn_flow,
    drawn_inputs,
    gradients,
    latents_of,
    module_gradients,
    module_of,
    module_sampled,
    module_velocity,
    params_of,
    row_of,
    sampled,
    tensors_of,
    velocity,
    worst,
)
from released import modeling

from onediff_jax.ops import solve
from onediff_jax.ops.layout import Layout, Slot

BFLOAT16 = 2e-2
BLOCK = dataclasses.replace(SMALL, width=3840, heads=32, kv_heads=8, depth=1, channels=16)
BLOCK = dataclasses.replace(BLOCK, multiple_of=256)  # one block as released


def both(config, inputs, tensors=None, **scaling):
    """Our velocity, and the module's."""
    tensors = tensors_of(config) if tensors is None else tensors
    expected = module_velocity(module_of(config, tensors), inputs, **scaling)
    return velocity(config, tensors, inputs, **scaling), expected


def test_no_weight_is_at_zero_or_one():
    tensors = tensors_of(SMALL)
    assert not any(np.isin(tensor, (0, 1)).any() for tensor in tensors.values())
    loaded = dict(module_of(SMALL, tensors).named_parameters())
    assert loaded.keys() == tensors.keys()
    assert all(np.array_equal(loaded[n].detach().numpy(), tensors[n]) for n in tensors)


@pytest.mark.parametrize(
    ("changes", "shape"),  # examples, views, height, width
    [
        ({"softcap": None}, (2, 1, 4, 6)),
        ({}, (3, 2, 8, 4)),
        ({"softcap": 2.0, "attention": "reference"}, (3, 2, 8, 4)),
        ({}, (1, 12, 12, 16)),  # 576 tokens are two blocks of keys
        ({"softcap": None}, (1, 12, 12, 16)),
        ({"width": 108, "heads": 6, "kv_heads": 3, "patch": 4, "multiple_of": 40}, (2, 2, 8, 12)),
        ({"width": 72, "heads": 4, "kv_heads": 4, "patch": 1, "depth": 3}, (2, 2, 2, 3)),
    ],
)
def test_velocities_are_those_of_the_module(changes, shape):
    config = dataclasses.replace(SMALL, **changes)
    assert relative_error(*both(config, drawn_inputs(shape))) < FORWARD


@pytest.mark.parametrize("softcap", [30.0, None])
def test_velocities_in_half_precision_are_those_of_the_module(softcap):
    config = dataclasses.replace(SMALL, softcap=softcap, dtype="bfloat16")
    tensors, inputs = tensors_of(config), drawn_inputs((2, 12, 4, 6))
    expected = module_velocity(module_of(config, tensors).bfloat16(), inputs)
    found = velocity(config, tensors, inputs)
    assert relative_error(found, expected) < BFLOAT16
    exact = module_velocity(module_of(config, tensors), inputs)
    assert relative_error(found, exact) < relative_error(expected, exact)


def test_a_prompt_without_words_is_none_for_both():
    inputs = drawn_inputs((3, 2, 8, 4))
    inputs.mask[0] = False
    found, expected = both(SMALL, inputs)
    assert relative_error(found[0], expected[0]) < FORWARD
    assert relative_error(found, expected) < FORWARD


@pytest.mark.parametrize("watershed", [250.0, 300.0])  # the batch's largest time is 250
def test_positions_beyond_training_are_those_of_the_module(watershed):
    inputs = drawn_inputs((2, 12, 4, 6))
    inputs = inputs._replace(sigmas=inputs.sigmas / 4)
    scaling = dict(scale_factor=4.0, scale_watershed=watershed)
    found, expected = both(SMALL, inputs, **scaling)
    assert relative_error(found, expected) < FORWARD
    others = [dict(scaling, scale_watershed=550 - watershed), {}]
    module = module_of(SMALL, tensors_of(SMALL))
    assert all(
        relative_error(module_velocity(module, inputs, **other), expected) > 100 * FORWARD
        for other in others
    )


def test_examples_that_share_a_row_are_what_the_module_makes_of_each():
    every = [drawn_inputs((1, views, 4, 6), seed=views) for views in (2, 3, 1)]
    every[1].mask[:, 4:] = False
    tensors, rows = tensors_of(SMALL), [row_of(SMALL, inputs)[0] for inputs in every]
    for example, row in enumerate(rows):
        row["example_of_view"] += example
    row = {name: np.concatenate([row[name] for row in rows], 1) for name in rows[0]}
    layout = Layout((Slot(2, 6), Slot(4, 6, examples=2)))
    patches = np.asarray(applied(SMALL, params_of(SMALL, tensors), row, layout))
    module = module_of(SMALL, tensors)
    for inputs, part in zip(every, np.split(patches, [12, 30], 1), strict=True):
        found = latents_of(SMALL, part, inputs.latents.shape)
        assert relative_error(found, module_velocity(module, inputs)) < FORWARD


@pytest.mark.parametrize("softcap", [30.0, pytest.param(None, marks=pytest.mark.slow)])
def test_gradients_of_the_loss_are_those_of_the_module(softcap):
    config = dataclasses.replace(SMALL, softcap=softcap)
    tensors, inputs = tensors_of(config), drawn_inputs((3, 2, 8, 4))
    inputs.mask[0] = False
    _, sigmas, noise = drawn_flow(config, inputs)
    expected = module_gradients(module_of(config, tensors), inputs, sigmas, noise)
    assert worst(gradients(config, tensors, inputs), expected) < GRADIENT


@pytest.mark.parametrize(
    "wanted",
    [
        Trajectory("text2image", 1, ()),
        Trajectory("faceid", 4, ("reference_1", "reference_2")),
    ],
)
def test_sampling_walks_where_the_module_does(wanted):
    tensors = tensors_of(SMALL)
    asked = asked_of(SMALL, wanted)
    found = sampled(SMALL, tensors, wanted, asked)
    expected = module_sampled(module_of(SMALL, tensors), asked, wanted.steps)
    for view in range(found.shape[1]):
        assert relative_error(found[:, view], expected[:, view]) < SAMPLED


def test_positions_beyond_training_are_scaled_as_the_module_scales_them():
    tensors, wanted = tensors_of(SMALL), Trajectory("faceid", 4, ("reference_1", "reference_2"))
    asked, scaling = asked_of(SMALL, wanted), dict(scale_factor=1.5, scale_watershed=500.0)
    found = sampled(SMALL, tensors, wanted, asked, **scaling)
    expected = module_sampled(module_of(SMALL, tensors), asked, wanted.steps, **scaling)
    assert relative_error(found, expected) < SAMPLED
    assert relative_error(sampled(SMALL, tensors, wanted, asked), expected) > 10 * SAMPLED


@pytest.mark.parametrize("tokens", [12, 256, 1024, 4096, 12288])
def test_schedules_are_those_of_the_module(tokens):
    found = solve.Schedule().levels(50, tokens)
    assert np.abs(found - modeling.shifted_sigmas(50, tokens)).max() < 1e-6


def test_the_file_holds_what_the_module_makes():
    expected, found = np.load(FILE), kept()
    assert worst(found, dict(expected)) < GRADIENT


@pytest.mark.slow
def test_a_block_of_the_released_size_is_that_of_the_module():
    tensors = tensors_of(BLOCK, 2048)
    assert tensors["layers.0.feed_forward.w2.weight"].shape == (3840, 10240)
    inputs = drawn_inputs((1, 2, 4, 6), channels=16, width=2048)
    for config in (BLOCK, dataclasses.replace(BLOCK, softcap=None)):
        found, expected = both(config, inputs, tensors)
        assert relative_error(found, expected) < FORWARD
    _, sigmas, noise = drawn_flow(BLOCK, inputs)
    expected = module_gradients(module_of(BLOCK, tensors), inputs, sigmas, noise)
    assert worst(gradients(BLOCK, tensors, inputs), expected) < GRADIENT
