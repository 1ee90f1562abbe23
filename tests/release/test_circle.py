"""From PyTorch and back: released weights, imported, trained for 5 steps, and loaded again."""

import jax
import numpy as np
import pytest
from bridge import (
    MODEL,
    TINY,
    export_torch,
    import_torch,
    run,
    tensors_in,
    torch_velocity,
    velocity,
    write_transformer,
)
from drawn import relative_error
from tiny import tiny_config

from onediff_jax.release.shapes import denoiser_shapes
from onediff_jax.train.checkpoint import CheckpointConfig, weights
from onediff_jax.train.loop import train
from onediff_jax.train.tune import TuneConfig

STEPS = 5


@pytest.fixture(scope="module")
def circle(tmp_path_factory):
    """Folders: a random module's own, its import, a run that starts there, and the run's export."""
    released = pytest.importorskip("released")
    folder = tmp_path_factory.mktemp("circle")
    module = released.modeling.NextDiT(**TINY)
    generator = released.torch.Generator().manual_seed(0)
    for name, values in module.named_parameters():
        drawn = 0.2 * released.torch.randn(values.shape, generator=generator)
        values.data = drawn + ("norm" in name and "weight" in name)
    tensors = {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}
    write_transformer(folder / "source", tensors)
    assert run(import_torch, source=folder / "source", out=folder / "base") == 0
    config = tiny_config(
        steps=STEPS,
        tune=TuneConfig(start=str(folder / "base")),
        checkpoint=CheckpointConfig(every=STEPS),
    )
    train(config, folder / "run")
    assert run(export_torch, checkpoint=folder / "run", out=folder / "out") == 0
    return folder, module.eval(), released.modeling


def ours(folder, kind):
    """The denoiser's weights in a checkpoint."""
    shapes = {"denoiser": denoiser_shapes(MODEL, TINY["caption_channels"])}
    return weights(folder, shapes, kind)["denoiser"]


def test_an_imported_denoiser_does_what_the_module_does(circle):
    folder, module, _ = circle
    assert relative_error(velocity(ours(folder / "base", "ema")), torch_velocity(module)) < 2e-5


def test_what_was_trained_loads_with_strict_names_and_does_the_same(circle):
    folder, module, modeling = circle
    trained = ours(folder / "run", "params")
    expected = velocity(trained)
    loaded = modeling.NextDiT.from_pretrained(folder / "out")
    assert relative_error(torch_velocity(loaded), expected) < 2e-5
    assert relative_error(torch_velocity(module), expected) > 1e-4  # something was trained
    again = modeling.NextDiT(**TINY)
    tensors = tensors_in(folder / "out")
    tensors = {name: modeling.torch.from_numpy(x) for name, x in tensors.items()}
    again.load_state_dict(tensors, strict=True)
    assert relative_error(torch_velocity(again.eval()), expected) < 2e-5


def test_every_parameter_was_trained(circle):
    folder, _, _ = circle
    before, after = ours(folder / "base", "ema"), ours(folder / "run", "params")
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after)
    assert min(jax.tree.leaves(moved)) > 0
