"""Our Next-DiT against what the PyTorch module once made: needs no torch."""

import numpy as np
import pytest
from drawn import relative_error
from nextdit_witnesses import FILE, FORWARDS, SHAPE, TRAJECTORY, some
from parity import (
    FORWARD,
    GRADIENT,
    SAMPLED,
    SMALL,
    asked_of,
    drawn_flow,
    drawn_inputs,
    gradients,
    sampled,
    tensors_of,
    velocity,
    worst,
)

EXPECTED, TENSORS, INPUTS = np.load(FILE), tensors_of(SMALL), drawn_inputs(SHAPE)
ANEW = (
    "JAX draws other numbers than it did: write the file anew (tests/support/nextdit_witnesses.py)"
)


@pytest.mark.parametrize("case", FORWARDS)
def test_velocities_are_the_recorded_ones(case):
    found = velocity(FORWARDS[case], TENSORS, INPUTS)
    assert relative_error(found, EXPECTED[f"forward/{case}"]) < FORWARD


def test_gradients_of_the_loss_are_the_recorded_ones():
    _, sigmas, noise = drawn_flow(SMALL, INPUTS)
    assert np.allclose(sigmas, EXPECTED["flow/sigmas"], atol=1e-5), ANEW
    assert np.allclose(noise, EXPECTED["flow/noise"], atol=1e-5), ANEW
    found = {f"gradient/{n}": some(grad) for n, grad in gradients(SMALL, TENSORS, INPUTS).items()}
    expected = {name: EXPECTED[name] for name in EXPECTED.files if name.startswith("gradient/")}
    assert worst(found, expected) < GRADIENT


def test_sampling_walks_where_it_was_recorded():
    asked = asked_of(SMALL, TRAJECTORY)
    assert np.allclose(asked.noise, EXPECTED["trajectory/noise"], atol=1e-5), ANEW
    found = sampled(SMALL, TENSORS, TRAJECTORY, asked)
    assert relative_error(found, EXPECTED["trajectory/views"]) < SAMPLED
