"""What is imported is what was there, and what cannot be is refused before anything is written."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from bridge import (
    MODEL,
    RELEASED,
    TINY,
    TOOLS,
    WEIGHTS,
    export_torch,
    import_torch,
    run,
    tiny_tensors,
    write_transformer,
)
from pipeline import PIECES, spiece_model
from released_configs import T5, VAE
from safetensors.numpy import save_file

from onediff_jax.errors import InputError
from onediff_jax.models.nextdit import NextDiTConfig
from onediff_jax.ops.solve import Schedule
from onediff_jax.release.configs import SCHEDULER_FILE, t5_config, vae_config
from onediff_jax.release.folders import licence_in
from onediff_jax.release.mapping import from_released, released_shapes
from onediff_jax.release.names import T5_NAMES, VAE_NAMES, nextdit_names
from onediff_jax.release.shapes import autoencoder_shapes, denoiser_shapes, encoder_shapes
from onediff_jax.train import checkpoint
from onediff_jax.train.config import run_config
from onediff_jax.train.restore import restore_model

SMALL_VAE = VAE | {
    "block_out_channels": [8, 8], "norm_num_groups": 4, "latent_channels": 8,
    "layers_per_block": 1, "down_block_types": VAE["down_block_types"][:2],
    "up_block_types": VAE["up_block_types"][:2],
}  # fmt: skip
SMALL_T5 = T5 | {
    "d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1, "vocab_size": PIECES,
}  # fmt: skip


SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.30.3",
    "num_train_timesteps": 1000, "shift": 2.5, "use_dynamic_shifting": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An autoencoder, a text encoder, a tokenizer and a scheduler beside a transformer."""
    folder = write_transformer(tmp_path_factory.mktemp("whole"))
    for part, config, name in (
        ("vae", SMALL_VAE, WEIGHTS),
        ("text_encoder", SMALL_T5, "model.safetensors"),
    ):
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config))
        if part == "vae":
            names, shapes = VAE_NAMES, autoencoder_shapes(vae_config(folder / part))
        else:
            names, shapes = T5_NAMES, encoder_shapes(*t5_config(folder / part))
        shapes = released_shapes(shapes, names)
        save_file({n: np.ones(s, np.float32) for n, s in shapes.items()}, folder / part / name)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "spiece.model").write_bytes(spiece_model())
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / SCHEDULER_FILE).write_text(json.dumps(SCHEDULER))
    return folder


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    source = write_transformer(folder / "source", tiny_tensors(ml_dtypes.bfloat16))
    assert run(import_torch, source=source, out=folder / "out") == 0
    return folder / "out"


def test_a_checkpoint_holds_the_tensors_in_their_own_type_and_gives_them_in_any(imported):
    tensors = tiny_tensors(ml_dtypes.bfloat16)
    for dtype in (ml_dtypes.bfloat16, np.float32):
        shapes = denoiser_shapes(MODEL, 16, dtype)
        expected = {"denoiser": from_released(tensors, nextdit_names(MODEL), shapes)}
        found = checkpoint.weights(imported, {"denoiser": shapes})
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert one.dtype == other.dtype == dtype
            assert np.array_equal(one, other)
    name = "denoiser/layers/attention/wq/kernel"
    (place,) = checkpoint.saved_arrays(imported, [name]).values()
    assert (place.dtype, place.part, place.shape) == (ml_dtypes.bfloat16, "ema", (2, 24, 24))


def test_its_settings_are_those_of_the_source_and_its_origin_is_remembered(imported):
    settings, assets, step = checkpoint.saved_run(imported)
    config = run_config(settings)
    assert (config.model, step, config.text.encoder.width) == (MODEL, 0, 16)
    assert checkpoint.kinds_in(imported) == ("ema",)
    origin = json.loads(assets.origin)
    assert origin == {"licence": "unknown", "dtype": "bfloat16", "config": TINY}
    assert assets.partial
    with pytest.raises(InputError, match="holds a denoiser alone.*tune.start"):
        restore_model(imported)


@pytest.mark.parametrize("inside", [True, False])
def test_a_transformer_alone_may_be_the_folder_itself(tmp_path, inside):
    source = write_transformer(tmp_path / "source")
    if not inside:
        source = source / "transformer"
    assert run(import_torch, source=source, out=tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"checkpoints"}


def test_a_licence_is_found_or_given_and_the_released_one_is_known(tmp_path):
    source = write_transformer(tmp_path / "source")
    assert licence_in(source) is None
    (source / "LICENSE").write_text("\n  Some Licence 1.0\n\nof many words\n")
    assert licence_in(source) == "Some Licence 1.0"
    (source / "README.md").write_text("---\ntags: [a]\nlicense: cc-by-4.0\n---\nlicense: other\n")
    assert licence_in(source) == "cc-by-4.0"
    assert import_torch.licence_of(NextDiTConfig()) == "cc-by-nc-4.0"
    assert import_torch.licence_of(dataclasses.replace(NextDiTConfig(), depth=15)) == "unknown"
    assert run(import_torch, source=source, out=tmp_path / "given", licence="mine") == 0
    _, assets, _ = checkpoint.saved_run(tmp_path / "given")
    assert json.loads(assets.origin)["licence"] == "mine"


@pytest.mark.parametrize("link", [False, True])
def test_frozen_parts_are_copied_or_linked_without_pickles(whole, tmp_path, link):
    source = shutil.copytree(whole, tmp_path / "source")
    (source / "vae" / "old.bin").write_bytes(b"pickle")
    assert run(import_torch, source=source, out=tmp_path / "out", link=link) == 0
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        out = tmp_path / "out" / part
        assert out.is_symlink() == link
        for file in (source / part).iterdir():
            if link or file.suffix != ".bin":
                assert (out / file.name).read_bytes() == file.read_bytes()
    assert link or not (tmp_path / "out" / "vae" / "old.bin").exists()


def test_its_scheduler_decides_how_it_is_sampled_and_goes_back(whole, tmp_path):
    assert run(import_torch, source=whole, out=tmp_path / "in") == 0
    schedule = restore_model(tmp_path / "in").trained.schedule
    assert schedule == Schedule(2.5, use_dynamic_shifting=False)
    assert run(export_torch, checkpoint=tmp_path / "in", out=tmp_path / "out", frozen=whole) == 0
    file = tmp_path / "out" / "scheduler" / SCHEDULER_FILE
    assert json.loads(file.read_text()) == SCHEDULER


def changed(file: Path, **changes) -> None:
    """Changes keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def without_shard(source: Path) -> None:
    transformer = source / "transformer"
    (transformer / WEIGHTS).unlink()
    index = {"weight_map": {"x_embedder.weight": "lost.safetensors"}}
    (transformer / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def tampered(source: Path, **changes) -> None:
    write_transformer(source, {**tiny_tensors(), **changes})


def pickled(source: Path) -> None:
    (source / "transformer" / WEIGHTS).rename(source / "transformer" / "weights.bin")


def cut(source: Path) -> None:
    file = source / "transformer" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-9])


BAD = {
    "no folder": (lambda s: s.rename(s.with_name("moved")), "source is no folder"),
    "no weights": (lambda s: (s / "transformer" / WEIGHTS).unlink(), "holds no weights"),
    "cut": (cut, f"{WEIGHTS}: expected .* bytes by its header, found"),
    "pickle": (pickled, "weights.bin is a pickle.*convert it: python"),
    "shard": (without_shard, "lost.safetensors is missing; .*expects 1 tensors in it, such as x_"),
    "another model": (
        lambda s: changed(s / "transformer" / "config.json", _class_name="SD3Transformer2DModel"),
        "config.json: _class_name: expected 'NextDiT', found 'SD3Transformer2DModel'",
    ),
    "configuration": (
        lambda s: changed(s / "transformer" / "config.json", caption_channels=32),
        r"transformer: .* not those of a Next-DiT: .*wk_y.weight is \(12, 16\), not \(12, 32\)",
    ),
    "depth": (
        lambda s: changed(s / "transformer" / "config.json", depth=1),
        r"unknown \['layers.1.adaLN_modulation.1.bias'",
    ),
    "name": (
        lambda s: tampered(s, cap_embedder=np.zeros(3, np.float32)),
        r"unknown \['cap_embedder'\]",
    ),
    "latents": (
        lambda s: changed(s / "vae" / "config.json", latent_channels=16),
        "latent_channels: expected 8, the transformer's in_channels, found 16",
    ),
    "states": (
        lambda s: changed(s / "text_encoder" / "config.json", d_model=32),
        "d_model: expected 16, the transformer's caption_channels, found 32",
    ),
    "variant": (
        lambda s: changed(s / "text_encoder" / "config.json", feed_forward_proj="relu"),
        "text_encoder/config.json: feed_forward_proj: expected 'gated-gelu', found 'relu'",
    ),
    "vae's tensors": (
        lambda s: changed(s / "vae" / "config.json", layers_per_block=2),
        "source/vae: .* not those of an AutoencoderKL: missing",
    ),
    "scheduler": (
        lambda s: changed(s / "scheduler" / SCHEDULER_FILE, use_beta_sigmas=True),
        "scheduler/scheduler_config.json: use_beta_sigmas: expected False, found True",
    ),
    "scheduler's file": (
        lambda s: (s / "scheduler" / SCHEDULER_FILE).unlink(),
        "scheduler/scheduler_config.json is missing",
    ),
    "tokenizer": (
        lambda s: (s / "tokenizer" / "spiece.model").unlink(),
        "source/tokenizer holds no T5 tokenizer; expected spiece.model or tokenizer.json in it",
    ),
    "encoder's tensors": (
        lambda s: changed(s / "text_encoder" / "config.json", d_ff=8),
        "source/text_encoder: .* not those of a T5 encoder: of another shape",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line_and_nothing_is_left_behind(whole, tmp_path, capsys, case):
    spoil, said = BAD[case]
    source = shutil.copytree(whole, tmp_path / "source")
    spoil(source)
    (tmp_path / "out" / "kept").mkdir(parents=True)
    assert run(import_torch, source=source, out=tmp_path / "out", force=True) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1
    assert told.err.startswith("onediff_jax: ")
    assert re.search(said, told.err), told.err
    names = {path.name for path in tmp_path.iterdir()} - {"source", "moved"}
    assert names == {"out"} and (tmp_path / "out" / "kept").is_dir()


def test_nothing_is_overwritten_without_force(tmp_path, capsys):
    source = write_transformer(tmp_path / "source")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    assert run(import_torch, source=source, out=tmp_path / "out") == 1
    assert "out exists; give another --out, or --force" in capsys.readouterr().err
    assert (tmp_path / "out" / "precious").exists()
    assert run(import_torch, source=source, out=tmp_path / "out", force=True) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"checkpoints"}
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


def test_neither_tool_imports_torch(tmp_path):
    source, there = write_transformer(tmp_path / "source"), tmp_path / "there"
    program = (
        "import runpy, sys\n"
        f"tools = {str(TOOLS)!r}\n"
        f"sys.argv = ['', '--source', {str(source)!r}, '--out', {str(there)!r}]\n"
        "try: runpy.run_path(f'{tools}/import_torch.py', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        f"sys.argv = ['', '--checkpoint', {str(there)!r}, '--out', {str(there / 'back')!r}]\n"
        "try: runpy.run_path(f'{tools}/export_torch.py', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'diffusers', 'transformers', 'peft'} & set(sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(TOOLS.parent)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert (there / "back" / "manifest.json").is_file()


def test_the_settings_of_the_released_size_are_ours():
    config = import_torch.run_config_of(NextDiTConfig(), 2048, RELEASED)
    assert [slot.tokens for slot in config.data.row] == [48 * 48, 32 * 32, 32 * 32]
    assert export_torch.TEXT_WIDTH.startswith("denoiser/")


def test_a_folder_in_object_storage_is_imported_as_a_local_one(whole, bucket, tmp_path):
    (bucket / "released" / "README.md").write_text("---\nlicense: mit\n---\n")
    for file in filter(Path.is_file, whole.rglob("*")):
        (bucket / "released" / file.relative_to(whole)).write_bytes(file.read_bytes())
    assert run(import_torch, source="gs://bucket/released", out=tmp_path / "remote") == 0
    assert run(import_torch, source=whole, out=tmp_path / "local", licence="mit") == 0
    folders = [tmp_path / name for name in ("remote", "local")]
    described = [checkpoint.saved_run(folder) for folder in folders]
    assert described[0][1].origin == described[1][1].origin
    name = "denoiser/layers/attention/wo/kernel"
    found = [checkpoint.read_array(checkpoint.saved_arrays(f, [name])[name]) for f in folders]
    assert np.array_equal(*found)
    parts = [{str(f.relative_to(folder)) for f in folder.glob("[tv]*/*")} for folder in folders]
    assert parts[0] == parts[1] != set()
