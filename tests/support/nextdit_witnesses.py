"""What the PyTorch module of tools/released makes of drawn weights and inputs.

`python tests/support/nextdit_witnesses.py`, where torch is installed, writes it to
nextdit_witnesses.npz, so that the tests compare with it wherever they run.
"""

import pathlib

import numpy as np
from parity import (
    SMALL,
    UNCAPPED,
    Trajectory,
    asked_of,
    drawn_flow,
    drawn_inputs,
    module_gradients,
    module_of,
    module_sampled,
    module_velocity,
    tensors_of,
)

FILE = pathlib.Path(__file__).with_suffix(".npz")

SHAPE = (2, 3, 4, 6)  # examples, views, height, width
FORWARDS = {"capped": SMALL, "uncapped": UNCAPPED}
TRAJECTORY = Trajectory("depth2image", 2, ("depth",), steps=6)


def some(array: np.ndarray) -> np.ndarray:
    """Up to 64 of a tensor's values, chosen once for all."""
    return array.reshape(-1)[np.random.default_rng(0).permutation(array.size)[:64]]


def kept() -> dict[str, np.ndarray]:
    """Everything that the file holds: velocities, some of all gradients, and sampled views."""
    tensors, inputs = tensors_of(SMALL), drawn_inputs(SHAPE)
    modules = {case: module_of(config, tensors) for case, config in FORWARDS.items()}
    made = {f"forward/{case}": module_velocity(modules[case], inputs) for case in FORWARDS}
    _, sigmas, noise = drawn_flow(SMALL, inputs)
    found = module_gradients(modules["capped"], inputs, sigmas, noise)
    made |= {f"gradient/{name}": some(grad) for name, grad in found.items()}
    asked = asked_of(SMALL, TRAJECTORY)
    views = module_sampled(modules["capped"], asked, TRAJECTORY.steps)
    # What JAX drew, so that a change there is not taken for one of the network.
    drawn = {"flow/sigmas": sigmas, "flow/noise": noise, "trajectory/noise": asked.noise}
    return made | drawn | {"trajectory/views": views}


if __name__ == "__main__":
    np.savez_compressed(FILE, **kept())
