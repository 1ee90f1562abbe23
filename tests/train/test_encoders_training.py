"""Whole runs with released encoders: begun from an import, trained, refused, sampled, planned."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from bridge import import_torch
from bridge import run as run_tool
from drawn import relative_error
from PIL import Image
from pipeline import t5_weights, vae_weights, write_pipeline, write_release
from safetensors.numpy import load_file, save_file
from tiny import BlobSettings, tiny_config

from onediff_jax import cli
from onediff_jax.commands import encode as encode_dataset
from onediff_jax.data.batching.loader import DataConfig, MakeBatch, SlotConfig
from onediff_jax.data.sources.cache import Cache
from onediff_jax.errors import InputError
from onediff_jax.sampling.generate import Request, SampleConfig, generate
from onediff_jax.sharding import MeshConfig
from onediff_jax.train.checkpoint import saved_arrays, saved_run
from onediff_jax.train.compile import planned_step
from onediff_jax.train.config import CheckpointConfig, EvaluateConfig, LogConfig
from onediff_jax.train.encoders import CodecConfig, TextConfig
from onediff_jax.train.loop import train
from onediff_jax.train.prepare import prepare
from onediff_jax.train.restore import restore_model
from onediff_jax.train.tune import TuneConfig

pytest.importorskip("transformers", reason="the released tokenizer needs the t5 extra")

FEW = SampleConfig(steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A released folder with a transformer that reads the states of its text encoder."""
    return write_release(tmp_path_factory.mktemp("released") / "source")


@pytest.fixture(scope="module")
def imported(folder, tmp_path_factory):
    """What an import of the folder made, where it is now."""
    there = tmp_path_factory.mktemp("imported")
    assert run_tool(import_torch, source=folder, out=there / "out") == 0
    return (there / "out").rename(there / "moved")


def config_of(folder, **changes):
    """A run with both encoders of a folder inside its step."""
    settings = dict(
        steps=2,
        data=DataConfig(
            sources={"blobs": BlobSettings(8)},
            tasks={"depth2image": 1.0},
            row=(SlotConfig(2, 4),),
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
def workdir(imported, tmp_path_factory):
    """A run of two steps from the import, which drew its grids at the end."""
    evaluate = EvaluateConfig(every=2, rows=8, examples=1, sample=FEW)
    config = config_of(imported, tune=TuneConfig(start=str(imported)), evaluate=evaluate)
    return train(config, tmp_path_factory.mktemp("run") / "first")


def test_an_import_with_encoders_is_ready_to_sample_wherever_it_is(imported, folder):
    _, trained, step = restore_model(imported)
    assert (step, trained.codec.factor, trained.codec.channels) == (0, 2, 8)
    released = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    wo = trained.params["denoiser"]["layers"]["attention"]["wo"]["kernel"][1]
    assert np.array_equal(wo, released["layers.1.attention.wo.weight"].T)
    kernel = vae_weights()["decoder.conv_out.weight"].transpose(2, 3, 1, 0)
    assert np.array_equal(trained.params["codec"]["decoder"]["conv_out"]["kernel"], kernel)
    made = generate(trained, "text2image", 1, [Request("a box", {})], (8, 12), FEW, 0)
    assert made[0]["image"].shape == (8, 12, 3)


def test_a_run_trains_with_both_encoders_inside_its_step_and_saves_neither(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if '"loss"' in line]
    assert np.isfinite(losses).all() and len(losses) == 2
    names = ["denoiser/layers/attention/wq/kernel"]
    assert set(saved_arrays(workdir, names)) == set(names)
    with pytest.raises(InputError, match="lack 1 parameters of this model: text/embedding"):
        saved_arrays(workdir, ["text/embedding"], "params")
    grids = {file.name for file in (workdir / "pictures").glob("*.png")}
    assert grids == {f"depth2image_to_{name}_0000002.png" for name in ("image", "depth")}


def test_a_run_from_a_cache_tells_its_held_out_loss_and_draws_grids(imported, tmp_path):
    """Images of the grids are decoded from cached latents; nothing but the cache is read."""
    encode_dataset.encode(config_of(imported), tmp_path / "caches")
    config = config_of(
        imported,
        data=dataclasses.replace(
            config_of(imported).data,
            sources={"blobs": Cache(str(tmp_path / "caches" / "blobs"))},
            aspects="square",
        ),
        evaluate=EvaluateConfig(every=1, rows=8, grids=2, examples=2, sample=FEW),
    )
    workdir = train(config, tmp_path / "run")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    told = {line["step"]: line["held_out/loss"] for line in lines if "held_out/loss" in line}
    assert set(told) == {1, 2} and told[1] != told[2]
    by_task = [line["held_out/loss/depth2image"] for line in lines if "held_out/loss" in line]
    np.testing.assert_allclose(by_task, [told[1], told[2]], rtol=1e-5)  # its only task
    grids = {file.name for file in (workdir / "pictures").glob("*.png")}
    assert grids == {f"depth2image_to_{name}_0000002.png" for name in ("image", "depth")}


def test_what_a_run_starts_from_is_what_was_imported(workdir, imported):
    before, after = restore_model(imported).trained, restore_model(workdir).trained
    assert after.tokenizer.model == before.tokenizer.model
    assert saved_run(workdir).assets.origin == saved_run(imported).assets.origin
    assert np.array_equal(after.params["text"]["embedding"], t5_weights()["shared.weight"])
    for one, other in zip(
        *(jax.tree.leaves(each.params["denoiser"]) for each in (before, after)), strict=True
    ):
        assert 0 < relative_error(other, one) < 0.2  # two steps on


def test_a_run_with_other_encoders_is_refused(workdir, imported, tmp_path):
    config = config_of(imported, steps=3, tune=TuneConfig(start=str(imported)))
    trained = dataclasses.replace(config, text=TextConfig())
    with pytest.raises(InputError, match=r"config.text.kind is 'trained', and 't5' in .*moved"):
        train(trained, tmp_path / "run")
    other = write_pipeline(tmp_path / "other")
    file = other / "text_encoder" / "model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)
    changed = dataclasses.replace(config, text=dataclasses.replace(config.text, path=str(other)))
    for folder in (workdir, tmp_path / "run"):  # resumed, and begun
        with pytest.raises(InputError, match=r"config.text.path is .*other', whose .* made with"):
            train(changed, folder)


def test_folders_that_have_moved_are_named_to_sample(workdir, folder, tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "depth.png")
    arguments = ["sample", "--checkpoint", str(workdir), "--task=depth2image", "--steps=1"]
    arguments += ["--prompt=a box", f"--given=depth={tmp_path / 'depth.png'}"]
    arguments += ["--out", str(tmp_path / "out"), f"--codec_path={folder / 'vae'}"]
    assert cli.main([*arguments, "--text_path=/nowhere"]) == 1
    assert "--text_path=FOLDER to sample" in capsys.readouterr().err
    assert cli.main([*arguments, f"--text_path={folder}"]) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 1


@pytest.mark.parametrize("carried", ["pixels", "latents"])
def test_a_planned_step_takes_what_the_run_gives_it(folder, tmp_path, carried):
    config = config_of(folder)
    if carried == "latents":
        encode_dataset.encode(config, tmp_path)
        sources = {"blobs": Cache(str(tmp_path / "blobs"))}
        codec = dataclasses.replace(config.codec, posterior="mean")
        data = dataclasses.replace(config.data, sources=sources)
        config = dataclasses.replace(config, codec=codec, data=data)
    run = prepare(config)
    made, shapes = planned_step(prepare(config, absent=True))
    batch = MakeBatch(run.rows, config.rows, tuple(range(config.rows)))(0)
    parts = ("text", "codec") if carried == "pixels" else ("text",)
    assert run.rows.carried.encoders == parts
    params = run.pretrained_params(parts, run.mesh)
    for given, expected in ((batch, shapes.batch), (params, shapes.pretrained)):
        assert jax.tree.structure(given) == jax.tree.structure(expected)
        for one, other in zip(*map(jax.tree.leaves, (given, expected)), strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            assert isinstance(one, np.ndarray) or one.sharding == other.sharding
    made.step.lower(*shapes)
