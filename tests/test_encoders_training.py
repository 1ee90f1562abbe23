"""Whole runs with released encoders: trained, resumed, sampled, and begun from an import."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from bridge import MODEL, import_torch, write_transformer
from bridge import run as run_tool
from drawn import drawn_tensors, relative_error
from pipeline import T5_JSON, t5_weights, vae_weights, write_pipeline
from safetensors.numpy import load_file, save_file
from tiny import BlobSettings, tiny_config

from onediff_jax import cli
from onediff_jax.config import as_dict
from onediff_jax.data.loader import DataConfig, SlotConfig
from onediff_jax.errors import InputError
from onediff_jax.generate import Request, SampleConfig, generate
from onediff_jax.models.torch_names import nextdit_names
from onediff_jax.models.torch_weights import released_shapes
from onediff_jax.release.shapes import denoiser_shapes
from onediff_jax.restore import restored
from onediff_jax.sharding import MeshConfig
from onediff_jax.train.checkpoint import described, places
from onediff_jax.train.encoders import CodecConfig, TextConfig
from onediff_jax.train.loop import train
from onediff_jax.train.run import CheckpointConfig, EvaluateConfig, LogConfig
from onediff_jax.train.tune import TuneConfig

pytest.importorskip("transformers", reason="the released tokenizer needs the t5 extra")

FEW = SampleConfig(steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A released folder with a transformer that reads the states of its text encoder."""
    folder = write_pipeline(tmp_path_factory.mktemp("released") / "source")
    width = T5_JSON["d_model"]
    shapes = released_shapes(denoiser_shapes(MODEL, width), nextdit_names(MODEL))
    config = json.loads((write_transformer(folder) / "transformer" / "config.json").read_text())
    return write_transformer(folder, drawn_tensors(shapes), config | {"caption_channels": width})


def config_of(folder, **changes):
    """A run with both encoders of a folder inside its step."""
    settings = dict(
        steps=2,
        data=DataConfig(
            sources={"blobs": BlobSettings(8)},
            tasks={"text2image": 1.0, "depth2image": 1.0},
            row=(SlotConfig(1, 4), SlotConfig(2, 4)),
            aspects="square",
        ),
        text=TextConfig(kind="t5", path=str(folder), length=12, dtype="float32"),
        codec=CodecConfig(kind="sd3_vae", path=str(folder), dtype="float32"),
        mesh=MeshConfig(data=2, fsdp=4),
        checkpoint=CheckpointConfig(every=2),
        log=LogConfig(every=1),
        evaluate=EvaluateConfig(every=0),
    )
    return tiny_config(**settings | changes)


@pytest.fixture(scope="module")
def workdir(folder, tmp_path_factory):
    """A run of two steps that sampled its grids at the end."""
    config = config_of(folder, evaluate=EvaluateConfig(every=2, examples=2, sample=FEW))
    return train(config, tmp_path_factory.mktemp("run") / "first", as_dict(config))


def metrics_of(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_trains_with_both_encoders_inside_its_step_and_saves_neither(workdir):
    losses = [line["loss"] for line in metrics_of(workdir)]
    assert len(losses) == 2 and np.isfinite(losses).all()
    names = ["denoiser/layers/attention/wq/kernel"]
    assert set(places(workdir, names)) == set(names)
    with pytest.raises(InputError, match="lack 1 parameters of this model: text/embedding"):
        places(workdir, ["text/embedding"])
    grids = {file.name.split("_to_")[0] for file in (workdir / "pictures").glob("*.png")}
    assert grids == {"text2image", "depth2image"}


def test_a_run_goes_on_and_refuses_other_weights(folder, workdir, tmp_path):
    longer = config_of(folder, steps=3)
    train(longer, workdir, as_dict(longer))
    assert [line["step"] for line in metrics_of(workdir)] == [1, 2, 3]
    other = write_pipeline(tmp_path / "other")
    file = other / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)
    changed = config_of(other, steps=4)
    with pytest.raises(InputError, match=r"config.codec.path is .*/first was made with \w{16}"):
        train(changed, workdir, as_dict(changed))


def test_a_checkpoint_is_sampled_with_the_encoders_that_it_names(workdir):
    _, trained, _ = restored(workdir)
    assert np.array_equal(trained.params["text"]["embedding"], t5_weights()["shared.weight"])
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    request = Request("[[depth2image]] a box", {"depth": picture})
    (made,) = generate(trained, "depth2image", 2, [request], (8, 8), FEW, 0)
    assert made["image"].shape == (8, 8, 3)


def test_folders_that_have_moved_are_named_to_sample(workdir, folder, tmp_path, capsys):
    arguments = ["sample", "--checkpoint", str(workdir), "--task=text2image", "--steps=1"]
    arguments += ["--prompt=a box", "--out", str(tmp_path), f"--codec_path={folder / 'vae'}"]
    assert cli.main([*arguments, "--text_path=/nowhere"]) == 1
    assert "--text_path=FOLDER to sample" in capsys.readouterr().err
    assert cli.main([*arguments, f"--text_path={folder}"]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 1


# --- an import ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imported(folder, tmp_path_factory):
    """What an import of the folder made, where it is now."""
    there = tmp_path_factory.mktemp("imported")
    assert run_tool(import_torch, source=folder, out=there / "out") == 0
    return (there / "out").rename(there / "moved")


def test_an_import_with_encoders_is_ready_to_sample_wherever_it_is(imported, folder):
    _, trained, step = restored(imported)
    assert (step, trained.codec.factor, trained.codec.channels) == (0, 2, 8)
    released = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    wo = trained.params["denoiser"]["layers"]["attention"]["wo"]["kernel"][1]
    assert np.array_equal(wo, released["layers.1.attention.wo.weight"].T)
    kernel = vae_weights()["decoder.conv_out.weight"].transpose(2, 3, 1, 0)
    assert np.array_equal(trained.params["codec"]["decoder"]["conv_out"]["kernel"], kernel)
    made = generate(trained, "text2image", 1, [Request("a box", {})], (8, 12), FEW, 0)
    assert made[0]["image"].shape == (8, 12, 3)


def test_a_run_starts_from_an_import_with_its_encoders(imported, tmp_path):
    tune = TuneConfig(start=str(imported), rates={"*": 0.0})
    config = config_of(imported, tune=tune, mesh=MeshConfig())
    train(config, tmp_path / "run", as_dict(config))
    before, after = restored(imported).trained, restored(tmp_path / "run").trained
    assert after.tokenizer.model == before.tokenizer.model
    for one, other in zip(*map(jax.tree.leaves, (before.params, after.params)), strict=True):
        assert relative_error(one, other) < 1e-2  # text encoders in different types
    assert described(tmp_path / "run")[1].origin == described(imported)[1].origin


def test_a_run_with_other_encoders_than_the_import_it_starts_from_is_refused(imported, tmp_path):
    config = config_of(imported, tune=TuneConfig(start=str(imported)))
    trained = dataclasses.replace(config, text=TextConfig())
    with pytest.raises(InputError, match=r"config.text.kind is 'trained', and 't5' in .*moved"):
        train(trained, tmp_path / "one", as_dict(trained))
    other = write_pipeline(tmp_path / "other")
    file = other / "text_encoder" / "model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, path=str(other)))
    with pytest.raises(InputError, match=r"config.text.path is .*other', whose weights have the"):
        train(config, tmp_path / "two", as_dict(config))
