"""Adapters that are exported: merged, and alone for PEFT and for diffusers."""

import dataclasses

import numpy as np
import pytest
from bridge import MODEL, TINY, export_torch, made, run, save, torch_velocity, velocity
from drawn import relative_error
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file
from tiny import tiny_config

from onediff_jax.models.layers import LoraConfig
from onediff_jax.release.mapping import released
from onediff_jax.release.names import nextdit_names
from onediff_jax.train.tune import TuneConfig

LORA = LoraConfig(rank=3, alpha=7.0, targets=("wq", "wk", "wk_y", "wv_y", "wo", "w2"))


def with_lora(config, lora=LORA):
    return dataclasses.replace(config, model=dataclasses.replace(config.model, lora=lora))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A checkpoint of adapters on one of a base, all weights, and its two exports."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("adapted")
    params = made(folder / "all", config=with_lora(tiny_config()), lora=LORA)
    base = save(folder / "base", without_adapters(params), tiny_config())
    tune = TuneConfig(start=str(base), train=("*/lora_?",))
    flat = flatten_dict(params, sep="/")
    adapters = unflatten_dict({n: x for n, x in flat.items() if "lora" in n}, sep="/")
    save(folder / "run", adapters, with_lora(tiny_config(tune=tune)))
    for out in ("merged", "adapters"):
        options = dict(checkpoint=folder / "run", out=folder / out, adapters=out == "adapters")
        assert run(export_torch, **options) == 0
    return params, folder


def base_in_torch(params):
    """The denoiser without its adapters, in PyTorch."""
    from released import modeling, torch

    module = modeling.NextDiT(**TINY)
    tensors = released(without_adapters(params), nextdit_names(MODEL))
    module.load_state_dict({n: torch.from_numpy(np.array(x)) for n, x in tensors.items()})
    return module.eval()


def without_adapters(params):
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({n: x for n, x in flat.items() if "lora" not in n}, sep="/")


def test_merged_weights_do_what_the_adapters_do(adapted):
    params, folder = adapted
    from released import modeling

    expected = velocity(params, dataclasses.replace(MODEL, lora=LORA))
    assert relative_error(velocity(without_adapters(params)), expected) > 0.05
    merged = modeling.NextDiT.from_pretrained(folder / "merged")
    assert relative_error(torch_velocity(merged), expected) < 2e-5


def test_peft_reads_the_adapters(adapted):
    peft = pytest.importorskip("peft")
    params, folder = adapted
    expected = velocity(params, dataclasses.replace(MODEL, lora=LORA))
    module = peft.PeftModel.from_pretrained(base_in_torch(params), folder / "adapters")
    assert relative_error(torch_velocity(module), expected) < 2e-5
    files = {path.name for path in (folder / "adapters").iterdir()}
    assert files == {
        "adapter_model.safetensors", "adapter_config.json", "pytorch_lora_weights.safetensors",
        "README.md", "manifest.json",
    }  # fmt: skip


def test_diffusers_reads_the_adapters_with_and_without_their_metadata(adapted, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    from diffusers.loaders import PeftAdapterMixin
    from released import modeling

    params, folder = adapted
    expected = velocity(params, dataclasses.replace(MODEL, lora=LORA))
    tensors = load_file(folder / "adapters" / "pytorch_lora_weights.safetensors")
    assert "transformer.layers.1.attention.wk_y.lora_B.weight" in tensors
    assert len(tensors) == 2 * 2 * len(LORA.targets)
    save_file(tensors, tmp_path / "bare.safetensors", {"format": "pt"})
    del diffusers
    for file in (
        folder / "adapters" / "pytorch_lora_weights.safetensors",
        tmp_path / "bare.safetensors",
    ):
        module = base_in_torch(params)
        module.__class__ = type("Adaptable", (modeling.NextDiT, PeftAdapterMixin), {})
        module.load_lora_adapter(str(file), prefix="transformer")
        assert relative_error(torch_velocity(module), expected) < 2e-5


def test_adapters_are_not_exported_alone_where_more_was_trained(adapted, tmp_path, capsys):
    _, folder = adapted
    assert run(export_torch, checkpoint=folder / "all", out=tmp_path / "out", adapters=True) == 1
    assert "trained more than adapters, such as denoiser/" in capsys.readouterr().err
