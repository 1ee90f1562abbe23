"""What is exported: names, types, settings, shards, adapters, and what goes along."""

import dataclasses
import hashlib
import json
import re

import ml_dtypes
import numpy as np
import pytest
from bridge import (
    MODEL,
    RELEASED,
    TINY,
    equal,
    export_torch,
    import_torch,
    made,
    run,
    tensors_in,
    tiny_tensors,
    write_transformer,
)
from numpy.testing import assert_allclose
from tiny import tiny_config

from onediff_jax.models.nextdit import NextDiTConfig
from onediff_jax.ops.solve import Schedule
from onediff_jax.release.configs import nextdit_json
from onediff_jax.release.mapping import released
from onediff_jax.release.names import nextdit_names
from onediff_jax.train.checkpoint import saved_run


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A checkpoint of a run that began at random, and its export in small shards."""
    folder = tmp_path_factory.mktemp("plain")
    params = made(folder / "run")
    status = run(export_torch, checkpoint=folder / "run", out=folder / "out", shard_gb=2e-5)
    assert status == 0
    return params, folder


def test_tensors_have_released_names_in_the_order_of_layers(plain):
    params, folder = plain
    assert equal(tensors_in(folder / "out"), released(params, nextdit_names(MODEL)))
    transformer = folder / "out" / "transformer"
    index = json.loads((transformer / "diffusion_pytorch_model.safetensors.index.json").read_text())
    files = [f.name for f in sorted(transformer.glob("*.safetensors"))]
    count = len(files)
    assert count > 3 and sorted(set(index["weight_map"].values())) == files
    assert files[0] == f"diffusion_pytorch_model-00001-of-{count:05}.safetensors"
    sizes = [(transformer / name).stat().st_size for name in files]
    assert max(sizes) < 20_000 + 8_000  # bytes of tensors, and of a header
    assert index["metadata"]["total_size"] == sum(
        x.nbytes for x in tensors_in(folder / "out").values()
    )
    layers = [
        int(found[1]) for name in index["weight_map"] if (found := re.match(r"layers\.(\d+)", name))
    ]
    assert layers == sorted(layers) and set(layers) == {0, 1}


def test_layers_are_sorted_by_their_numbers():
    names = [
        "layers.10.a",
        "layers.9.b",
        "layers.9.a",
        "x_embedder.bias",
        "final_layer.linear.bias",
    ]
    assert sorted(names, key=export_torch.numbered) == [
        "final_layer.linear.bias", "layers.9.a", "layers.9.b", "layers.10.a", "x_embedder.bias",
    ]  # fmt: skip


def test_the_configuration_has_every_released_key_with_the_model_s_values(plain):
    found = json.loads((plain[1] / "out" / "transformer" / "config.json").read_text())
    assert found.keys() == RELEASED.keys()
    run_values = {
        "decay": tiny_config().optimizer.ema, "optimization_step": 7, "forward_dtype": "float32",
        "input_size": [1, 6, 6], "model_max_length": 12,
    }  # fmt: skip
    assert found == TINY | run_values


def test_the_released_configuration_is_written_as_it_was_read():
    ours = ("decay", "optimization_step")
    found = nextdit_json(NextDiTConfig(), 2048, {key: RELEASED[key] for key in ours})
    assert found == RELEASED and list(found) == sorted(found)
    uncapped = nextdit_json(dataclasses.replace(NextDiTConfig(), softcap=None), 2048, RELEASED)
    assert uncapped == RELEASED | {"softcap": None}


@pytest.mark.parametrize(
    ("asked", "dtype"),
    [("bf16", ml_dtypes.bfloat16), ("float16", np.float16), ("fp32", np.float32)],
)
def test_a_type_can_be_asked_for(plain, tmp_path, asked, dtype):
    params, folder = plain
    assert run(export_torch, checkpoint=folder / "run", out=tmp_path / "out", dtype=asked) == 0
    expected = released(params, nextdit_names(MODEL))
    assert equal(tensors_in(tmp_path / "out"), {n: x.astype(dtype) for n, x in expected.items()})
    assert (
        json.loads((tmp_path / "out" / "manifest.json").read_text())["dtype"]
        == np.dtype(dtype).name
    )


def test_what_a_type_cannot_hold_is_refused_and_nothing_is_left_behind(tmp_path, capsys):
    tensors = tiny_tensors()
    tensors["x_embedder.bias"][3] = 1e6
    source = write_transformer(tmp_path / "source", tensors)
    assert run(import_torch, source=source, out=tmp_path / "in") == 0
    assert run(export_torch, checkpoint=tmp_path / "in", out=tmp_path / "out", dtype="fp16") == 1
    assert (
        "x_embedder.bias holds numbers that float16 cannot; use --dtype" in capsys.readouterr().err
    )
    assert {path.name for path in tmp_path.iterdir()} == {"source", "in"}
    assert run(export_torch, checkpoint=tmp_path / "in", out=tmp_path / "out", dtype="bf16") == 0


def test_the_manifest_has_the_digest_of_every_file_and_what_they_are(plain):
    out = plain[1] / "out"
    manifest = json.loads((out / "manifest.json").read_text())
    files = {str(f.relative_to(out)): f for f in out.rglob("*") if f.is_file()}
    del files["manifest.json"]
    digests = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
    assert manifest["sha256"] == digests and len(digests) > 7
    assert (manifest["step"], manifest["weights"], manifest["dtype"]) == (7, "ema", "float32")
    settings, _, _ = saved_run(plain[1] / "run")
    text = json.dumps(settings, sort_keys=True).encode()
    assert manifest["config_sha256"] == hashlib.sha256(text).hexdigest()
    assert manifest["licence"] is None


def test_the_code_goes_along_and_a_card_says_what_it_is(plain):
    out = plain[1] / "out"
    code = (out / "transformer" / "modeling_nextdit.py").read_bytes()
    assert code == export_torch.MODELING.read_bytes()
    card = (out / "README.md").read_text()
    assert (
        "Step 7 of a run" in card and "license:" not in card and "their owner's to choose" in card
    )


def test_diffusers_reads_the_scheduler_as_ours(plain):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(
        plain[1] / "out", subfolder="scheduler"
    )
    for tokens in (256, 1024, 6000):
        mu = float(np.log(Schedule().factor(tokens)))
        config = theirs.config
        slope = (config.max_shift - config.base_shift) / (
            config.max_image_seq_len - config.base_image_seq_len
        )
        assert_allclose(config.base_shift + slope * (tokens - config.base_image_seq_len), mu)
        theirs.set_timesteps(sigmas=np.linspace(1, 1 / 20, 20), mu=mu)
        levels = Schedule().levels(20, tokens)
        assert_allclose(theirs.sigmas, levels, rtol=1e-6)
        assert_allclose(theirs.timesteps, 1000 * levels[:-1], rtol=1e-6)


def test_frozen_parts_and_the_licence_go_along(tmp_path):
    parts = tmp_path / "parts"
    for part in ("vae", "tokenizer", "scheduler"):
        (parts / part).mkdir(parents=True)
        (parts / part / "file").write_text(part)
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.5}
    origin = {"licence": "cc-by-nc-4.0", "config": TINY, "scheduler": scheduler}
    origin = json.dumps(origin).encode()
    made(tmp_path / "run", origin=origin)
    options = dict(checkpoint=tmp_path / "run", frozen=parts, link=True)
    assert run(export_torch, out=tmp_path / "out", **options) == 0
    assert (tmp_path / "out" / "vae").is_symlink()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    digest = hashlib.sha256(b"tokenizer").hexdigest()
    assert manifest["sha256"]["tokenizer/file"] == digest
    assert manifest["licence"] == "cc-by-nc-4.0"
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-nc-4.0\n---\n") and "holds for these too" in card
    written = tmp_path / "out" / "scheduler" / "scheduler_config.json"
    assert json.loads(written.read_text()) == scheduler and len([*written.parent.iterdir()]) == 1
    # Keys that do not follow from the model are those of the imported file; averages are the run's.
    found = json.loads((tmp_path / "out" / "transformer" / "config.json").read_text())
    run_values = {"optimization_step": 7, "forward_dtype": "float32"}
    assert found == TINY | run_values | {"decay": tiny_config().optimizer.ema}


def test_nothing_is_overwritten_without_force_and_bad_options_are_one_line(plain, tmp_path, capsys):
    folder = plain[1]
    for options, said in (
        (dict(checkpoint=folder / "run", out=folder / "out"), "out exists; give another --out"),
        (dict(checkpoint=tmp_path / "no", out=tmp_path / "a"), "no holds no checkpoint"),
        (dict(checkpoint=folder / "run", out=tmp_path / "a", adapters=True), "has no adapters"),
        (
            dict(checkpoint=folder / "run", out=tmp_path / "a", frozen=tmp_path / "b"),
            "--frozen is .*b, which is no folder",
        ),
    ):
        assert run(export_torch, **options) == 1
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and re.search(said, told), told
    assert not list(tmp_path.iterdir())
