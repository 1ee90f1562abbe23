"""What a configuration names, seen from its root; checkpoints keep it as it was written."""

import dataclasses
import json
import runpy

import numpy as np
import pytest
from buckets import Bucket
from caches import CONFIG, write_cache
from places import ROOT
from tiny import tiny_config

from onediff_jax import cli
from onediff_jax.commands import doctor
from onediff_jax.commands import encode as encode_dataset
from onediff_jax.data.codecs import LinearCodec
from onediff_jax.data.conditions.make import ConditionConfig
from onediff_jax.data.registry import SOURCES
from onediff_jax.data.sources.cache import Cache
from onediff_jax.data.sources.tfds import Tfds
from onediff_jax.errors import InputError
from onediff_jax.train.assets import Assets, encoding_recipe
from onediff_jax.train.checkpoint import all_changes, binding_changes, save_weights, saved_arrays
from onediff_jax.train.config import as_dict, locations, resolve_paths, run_config
from onediff_jax.train.encoders import CodecConfig, TextConfig
from onediff_jax.train.prepare import open_sources
from onediff_jax.train.tune import TuneConfig

CONFIGS = ROOT / "configs"
ASSETS = Assets(LinearCodec(*np.ones((3, 2, 2), np.float32)), b"words")


def everything(**changes):
    """A configuration that names something of every kind."""
    data = dataclasses.replace(
        tiny_config().data,
        sources={"a": Cache("caches/a"), "b": Tfds("/tfds", name="b", fields={"image": "x"})},
        conditions=ConditionConfig(hed="artifacts/hed"),
    )
    return tiny_config(
        data=data,
        text=TextConfig(kind="t5", path="weights/released", tokenizer="gs://other/tokenizer"),
        codec=CodecConfig(kind="sd3_vae", path="~/vae"),
        tune=TuneConfig(start="runs/first"),
        **changes,
    )


def test_all_that_a_configuration_names_is_seen_from_its_root():
    config = everything(root="gs://bucket/mine")
    assert locations(resolve_paths(config)) == {
        "config.data.sources.a.path": "gs://bucket/mine/caches/a",
        "config.data.sources.b.path": "/tfds",
        "config.data.conditions.hed": "gs://bucket/mine/artifacts/hed",
        "config.text.path": "gs://bucket/mine/weights/released",
        "config.text.tokenizer": "gs://other/tokenizer",
        "config.codec.path": "~/vae",
        "config.tune.start": "gs://bucket/mine/runs/first",
    }
    assert resolve_paths(everything()) == everything() and resolve_paths(
        resolve_paths(config)
    ) == resolve_paths(config)
    assert config == everything(root="gs://bucket/mine")  # nothing is changed in place


def test_every_source_has_its_folder_among_the_locations():
    for kind, settings in SOURCES.items():
        if any(field.name == "path" for field in dataclasses.fields(settings)):
            data = dataclasses.replace(tiny_config().data, sources={"x": settings(path="folder")})
            found = locations(resolve_paths(tiny_config(root="/data", data=data)))
            assert found == {"config.data.sources.x.path": "/data/folder"}, kind


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("stage*.py")), ids=lambda file: file.stem)
def test_nothing_of_a_shipped_stage_is_left_on_a_laptop(file):
    config = run_config(runpy.run_path(str(file))["get_config"]())
    found = locations(resolve_paths(dataclasses.replace(config, root="gs://bucket")))
    names = {"config.text.path", "config.codec.path"}
    names |= {f"config.data.sources.{name}.path" for name in config.data.sources}
    assert names <= set(found)
    assert all(path.startswith("gs://bucket/") for path in found.values())


def test_another_root_changes_no_meaning_of_a_checkpoint_and_no_cache():
    one, other = everything(root="gs://bucket"), everything(root="/data")
    saved = json.loads(json.dumps(as_dict(one)))
    assert not binding_changes(saved, other)
    assert set(all_changes(saved, other)) == {"root"}
    del saved["root"]  # as before there was such a setting
    assert not binding_changes(saved, one)
    linear = [
        dataclasses.replace(resolve_paths(config), text=TextConfig(), codec=CodecConfig(factor=2))
        for config in (one, other)
    ]
    plans = [encoding_recipe(config, ASSETS, False) for config in linear]
    assert plans[0] == plans[1] and "hed" not in plans[0]["conditions"]


def test_what_a_run_started_from_is_found_from_its_root_and_where_that_is_now(tmp_path):
    """A chain of three checkpoints, each of which holds one parameter."""
    root = tmp_path / "one"
    for number, start in enumerate(("", "runs/0", "runs/1")):
        config = tiny_config(root=str(root), tune=TuneConfig(start=start))
        params = {"denoiser": {f"matrix{number}": np.full(3, number, np.float32)}}
        save_weights(root / "runs" / f"{number}" / "checkpoints" / "0", params, ASSETS, config)
    names = [f"denoiser/matrix{number}" for number in range(3)]
    assert len(saved_arrays(root / "runs" / "2", names)) == 3
    moved = root.rename(tmp_path / "other")
    with pytest.raises(InputError, match=f"{root}/runs/1 holds no checkpoint"):
        saved_arrays(moved / "runs" / "2", names)
    found = saved_arrays(moved / "runs" / "2", names, root=str(moved))
    assert [place.folder.parts[-3] for place in found.values()] == ["2", "1", "0"]


@pytest.mark.parametrize("kind", ["folder", "scenes", "posed", "coco", "identities"])
def test_sources_of_many_files_are_not_read_from_a_root_in_a_bucket(bucket, kind):
    (bucket / "data" / "a.png").write_bytes(b"")
    data = dataclasses.replace(tiny_config().data, sources={"x": SOURCES[kind](path="data")})
    config = resolve_paths(tiny_config(root="gs://bucket", data=data))
    with pytest.raises(InputError, match=f"gs://bucket/data.*kind '{kind}'.*make shards"):
        open_sources(config.data, "train")


@pytest.mark.parametrize("kind", ["shards", "cache", "tfds"])
def test_a_wrong_bucket_is_told_in_one_line(bucket, kind):
    data = dataclasses.replace(tiny_config().data, sources={"x": SOURCES[kind](path="data")})
    config = resolve_paths(tiny_config(root="gs://wrong", data=data))
    with pytest.raises(InputError, match="no folder 'gs://wrong/data'.*gcloud storage ls") as said:
        open_sources(config.data, "train")
    assert "\n" not in str(said.value)


def test_a_cache_is_written_into_a_bucket_and_goes_on_there_from_another_root(bucket, tmp_path):
    local = write_cache(tmp_path / "local")
    out, there = bucket / "caches", bucket / "caches" / "blobs"
    encode_dataset.encode(dataclasses.replace(CONFIG, root="here"), out, 1, False, 5)
    names = sorted(file.name for file in local.iterdir())
    assert names == sorted(file.name for file in there.iterdir())
    for name in names:
        if name != "assets.npz":  # which has times in it
            assert (there / name).read_bytes() == (local / name).read_bytes(), name
    lost = there / "text2image-1x4-00000.array_record"
    data = lost.read_bytes()
    lost.unlink()
    Bucket.put.clear()
    encode_dataset.encode(dataclasses.replace(CONFIG, root="there"), out, 1, False, 5)
    assert lost.read_bytes() == data
    assert Bucket.put == [f"/bucket/caches/blobs/{name}" for name in (lost.name, "manifest.json")]
    with pytest.raises(InputError, match=r"gs://bucket/.*seed is 0, and 1 now"):
        encode_dataset.encode(dataclasses.replace(CONFIG, seed=1), out, 1, False, 5)


def test_the_doctor_names_every_path_that_it_cannot_reach(bucket):
    (bucket / "weights" / "vae" / "config.json").write_text("{}")
    config = dataclasses.replace(
        everything(root="gs://bucket"), codec=CodecConfig(kind="sd3_vae", path="weights")
    )
    made = {check.subject: check for check in doctor.checks(as_dict(config))}
    failed = {name: check.said for name, check in made.items() if check.state == doctor.FAILED}
    for name, path in {
        "path config.tune.start": "gs://bucket/runs/first holds no checkpoint",
        "path config.text.path": "'gs://bucket/weights/released', and neither it nor text_encoder/",
        "path config.text.tokenizer": "'gs://other/tokenizer', which is not there",
        "path config.data.conditions.hed": "'gs://bucket/artifacts/hed', which is not there",
        "data a train": "no folder 'gs://bucket/caches/a'",
    }.items():
        assert path in failed[name] and "\n" not in failed[name]
    assert made["path config.codec.path"].said == "gs://bucket/weights/vae"


def test_a_run_shows_what_it_reads_and_keeps_what_was_written(tmp_path, monkeypatch, capsys):
    seen = {}
    monkeypatch.setattr(
        "onediff_jax.train.loop.train",
        lambda config, workdir: seen.update(config=config),
    )
    arguments = ["train", "--config", str(CONFIGS / "stage2_multitask.py"), "--workdir=w"]
    assert cli.main([*arguments, f"--config.root={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert f"config.tune.start: {tmp_path}/runs/stage1_512\n" in said
    assert seen["config"].tune.start == "runs/stage1_512"
    assert seen["config"].root == str(tmp_path)
