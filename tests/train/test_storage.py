"""Workdirs and shards in object storage: in a bucket in memory, and in an emulator where one is."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from buckets import Bucket
from emulator import emulated, needs_emulator
from places import SUPPORT
from tiny import Blobs

from onediff_jax.data.sources.folder import Folder
from onediff_jax.data.sources.shards import record_bytes, write_shards
from onediff_jax.errors import InputError
from onediff_jax.train import storage
from onediff_jax.train.storage import StagedFolder
from onediff_jax.train.writer import RunWriter


def test_a_local_folder_is_itself(tmp_path):
    staged = StagedFolder(tmp_path)
    assert staged.local == tmp_path
    (tmp_path / "a").touch()
    staged.copy(at_once=True)
    staged.close()
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_files_that_grow_are_copied_whole_now_and_then_and_at_the_end(bucket, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(storage.time, "monotonic", lambda: now[0])
    staged = StagedFolder(bucket / "run")
    (staged.local / "inner").mkdir()
    for name in ("grows", "inner/stays"):
        (staged.local / name).write_text("1")
    staged.copy()
    assert not Bucket.written  # a minute has not passed
    now[0] = 61
    staged.copy()
    assert (bucket / "run" / "inner" / "stays").read_text() == "1"
    (staged.local / "grows").write_text("1 2")
    staged.copy()
    assert (bucket / "run" / "grows").read_text() == "1"
    local = staged.local
    staged.close()
    assert (bucket / "run" / "grows").read_text() == "1 2" and not local.exists()
    assert sorted(Bucket.written) == ["/bucket/run/grows"] * 2 + ["/bucket/run/inner/stays"]


def test_a_run_in_a_bucket_tells_every_step_once_although_it_was_resumed(bucket):
    for first, loss in ((1, 1.0), (3, 2.0)):
        with RunWriter(bucket / "run", first, 4) as writer:
            for step in range(first, 5):
                writer.scalars(step, {"loss": loss})
            writer.text("parameters", "many")
            path = writer.images(4, "grid", np.zeros((2, 2, 3), np.uint8))
    lines = (bucket / "run" / "metrics.jsonl").read_text().splitlines()
    told = [(line["step"], line["loss"]) for line in map(json.loads, lines)]
    assert told == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    assert str(path) == "gs://bucket/run/pictures/grid_0000004.png" and path.exists()
    assert (bucket / "run" / "parameters.txt").read_text() == "many"
    assert len(list((bucket / "run" / "tensorboard").iterdir())) == 2


def test_sources_of_many_files_are_not_read_from_buckets(bucket):
    (bucket / "pictures" / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="gs://bucket/pictures.*make shards"):
        Folder(path="gs://bucket/pictures").open("train")


PROGRAM = """
import pathlib, sys
import jax, jax.numpy as jnp, numpy as np
sys.path.insert(0, {tests!r})
import tiny
from absl import flags
from etils import epath
flags.FLAGS.mark_as_parsed()
from onediff_jax.data.codecs import LinearCodec
from onediff_jax.data.sources.shards import Shards
from onediff_jax.data.sources.tfds import Tfds
from onediff_jax.train import checkpoint
from onediff_jax.train.assets import Assets
from onediff_jax.train.config import CheckpointConfig
from onediff_jax.train.state import State

source = Shards(path="gs://bucket/shards").open("train")
assert len(source) == 5 and np.array_equal(source[3]["image"], tiny.Blobs()[3]["image"])
mapped = dict(image="picture", caption="captions/text/1")
source = Tfds(path="gs://bucket/tfds", name="small", fields=mapped, validation=0).open("train")
assert len(source) == 10 and source.caption(3) == "second 3 \u2600"
workdir, config = epath.Path("gs://bucket/run"), tiny.tiny_config()
assets = Assets(LinearCodec(*np.ones((3, 2, 2), np.float32)), b"words")
weights = {{"a": {{"kernel": jnp.arange(12.0).reshape(3, 4)}}}}
state = State(jnp.int32(7), weights, weights, (), {{}})
with checkpoint.Checkpoints(workdir, CheckpointConfig(keep=2)) as checkpoints:
    for step in (1, 2, 3):
        checkpoints.save(step, state, assets, config)
assert checkpoint.newest_step(workdir) == 3
assert sorted(f.name for f in (workdir / "checkpoints").iterdir()) == ["2", "3"]
(workdir / "checkpoints" / "3" / "commit_success.txt").unlink()  # as if it were being written
assert checkpoint.newest_step(workdir) == 2
with checkpoint.Checkpoints(workdir, CheckpointConfig(keep=2)) as checkpoints:
    found = checkpoints.restore(2, state, config)
    assert checkpoint.saved_run(workdir).assets.vocabulary == b"words"
    assert not checkpoints.changes(2, config)
assert jax.tree.all(jax.tree.map(jnp.array_equal, found, state)), found
read = checkpoint.weights(workdir, jax.eval_shape(lambda: weights))
assert jnp.array_equal(read["a"]["kernel"], weights["a"]["kernel"])
"""


@needs_emulator
def test_an_emulated_bucket_keeps_checkpoints_and_gives_shards_and_data_sets(tmp_path):
    from small_tfds import Small

    count = 5
    records = {
        split: (Blobs(count), (record_bytes(Blobs()[i]) for i in range(count)))
        for split in ("train", "validation")
    }
    (tmp_path / "bucket" / "shards").mkdir(parents=True)
    write_shards(tmp_path / "bucket" / "shards", records)
    builder = Small(data_dir=tmp_path / "bucket" / "tfds", file_format="array_record")
    builder.download_and_prepare(download_dir=tmp_path / "nothing")
    with emulated(tmp_path) as environment:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(tests=str(SUPPORT))],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
