"""Copies of what is in object storage: whole and right, once, and going on after a kill."""

import pathlib
import shutil
import threading
import types

import numpy as np
import pytest
from buckets import Bucket

from onediff_jax import copies
from onediff_jax.copies import NOTE, local_copy
from onediff_jax.errors import InputError

CHUNK = 100
FILES = {
    "config.json": b"{}",
    "model.safetensors": np.random.default_rng(0).bytes(1050),
    "empty.txt": b"",
}


@pytest.fixture
def folder(bucket, monkeypatch):
    """A folder in a bucket, with some things in it that are not to be copied."""
    monkeypatch.setattr(copies, "READ_BYTES", CHUNK)
    monkeypatch.setattr(copies, "READS", 2)
    monkeypatch.setattr(copies, "SILENT_BYTES", 0)
    others = {"pytorch_model.bin": b"pickled", "inner/config.json": b"[]", ".hidden": b""}
    for name, data in (FILES | others).items():
        (bucket / "released" / name).write_bytes(data)
    return bucket / "released"


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir() if not f.name.startswith(".")}


def partial(copy: pathlib.Path) -> pathlib.Path:
    (found,) = copy.glob(".*.partial")
    return found


def test_a_folder_is_copied_once_and_brought_up_to_date(folder, tmp_path, capsys):
    copy = local_copy(folder)
    assert copy == tmp_path / "cache" / "onediff_jax" / "copies" / "gs" / "bucket" / "released"
    assert contents(copy) == FILES
    said = capsys.readouterr().err
    assert "fetching gs://bucket/released: 3 files, 0.00 GB, to " in said and "fetched" in said
    Bucket.read.clear()
    assert local_copy(str(folder)) == copy and not Bucket.read and not capsys.readouterr().err
    changed = b"x" * 1050  # of the same size
    (folder / "model.safetensors").write_bytes(changed)
    (folder / "empty.txt").unlink()
    local_copy(folder)
    assert {name for name, _ in Bucket.read} == {"model.safetensors"}
    assert contents(copy) == {"config.json": b"{}", "model.safetensors": changed}


def test_one_file_is_copied_alone_and_what_is_local_is_itself(folder, tmp_path, monkeypatch):
    copy = local_copy(folder / "config.json")
    assert contents(copy.parent) == {"config.json": b"{}"}
    Bucket.read.clear()
    assert local_copy(folder) == copy.parent and contents(copy.parent) == FILES
    assert "config.json" not in {name for name, _ in Bucket.read}
    assert local_copy(tmp_path / "here") == tmp_path / "here"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_copy("~/here") == tmp_path / "here"


@pytest.mark.parametrize("kind", ["shorter", "other", "without a note"])
def test_a_copy_that_was_changed_is_made_again(folder, kind):
    copy = local_copy(folder)
    file = copy / "model.safetensors"
    if kind == "without a note":
        (copy / NOTE).unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] if kind == "shorter" else b"y" * 1050)
    local_copy(folder)
    assert contents(copy) == FILES


def test_a_copy_that_was_interrupted_is_not_taken_and_goes_on_where_it_was(folder, monkeypatch):
    monkeypatch.setattr(Bucket, "breaks_at", 5 * CHUNK)
    with pytest.raises(InputError, match="cannot be read on from byte 0: the connection is gone"):
        local_copy(folder)
    copy = copies.local_path(folder)
    assert "model.safetensors" not in contents(copy)
    assert partial(copy).read_bytes() == FILES["model.safetensors"][: 5 * CHUNK]
    monkeypatch.setattr(Bucket, "breaks_at", None)
    Bucket.read.clear()
    assert contents(local_copy(folder)) == FILES
    starts = [start for name, start in Bucket.read if name == "model.safetensors"]
    assert sorted(starts) == list(range(5 * CHUNK, 1050, CHUNK))


def test_a_copy_does_not_go_on_in_half_of_another_or_of_a_damaged_one(folder, monkeypatch):
    monkeypatch.setattr(Bucket, "breaks_at", 5 * CHUNK)
    with pytest.raises(InputError):
        local_copy(folder)
    copy = copies.local_path(folder)
    partial(copy).write_bytes(b"z" * 5 * CHUNK)
    monkeypatch.setattr(Bucket, "breaks_at", None)
    assert contents(local_copy(folder)) == FILES  # once more from the beginning
    monkeypatch.setattr(Bucket, "breaks_at", 5 * CHUNK)
    (folder / "model.safetensors").write_bytes(b"1" * 1050)
    with pytest.raises(InputError):
        local_copy(folder)
    monkeypatch.setattr(Bucket, "breaks_at", None)
    (folder / "model.safetensors").write_bytes(b"2" * 1050)
    Bucket.read.clear()
    assert contents(local_copy(folder))["model.safetensors"] == b"2" * 1050
    assert len(Bucket.read) == 11 and not list(copy.glob(".*.partial"))  # each part once


def test_what_arrives_with_another_checksum_is_refused_and_not_there(folder, monkeypatch):
    monkeypatch.setattr(copies, "checksum_in", lambda entry: "md5:AAAA")
    with pytest.raises(InputError, match=r"arrives with .* bytes and checksum md5:.*md5:AAAA"):
        local_copy(folder)
    assert not contents(copies.local_path(folder))


def test_of_several_that_want_a_copy_one_makes_it(folder):
    begin, found = threading.Barrier(4), []

    def want() -> None:
        begin.wait()
        found.append(contents(local_copy(folder)))

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [FILES] * 4
    assert len(Bucket.read) == len(set(Bucket.read)) == 12


def test_what_is_not_there_or_has_no_room_is_told_in_one_line(folder, monkeypatch):
    for path in ("gs://bucket/nothing", "gs://other/released"):
        with pytest.raises(InputError, match=f"{path} is neither .*gcloud storage ls") as said:
            local_copy(path)
        assert "\n" not in str(said.value)
    full = types.SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(InputError, match="gs://bucket/released takes .* XDG_CACHE_HOME"):
        local_copy(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.raises(InputError, match="cannot be copied to /dev/null.*set XDG_CACHE_HOME"):
        local_copy(folder)


def test_the_checksum_of_objects_composed_of_parts_is_googles(tmp_path):
    pytest.importorskip("google_crc32c", reason="it comes with gcsfs")
    (tmp_path / "file").write_bytes(b"123456789")
    like = copies.checksum_in({"crc32c": "?"})
    # 0xE3069283 is the check value of CRC-32C in the catalogue of its parameters (RFC 3720 has it).
    assert copies.checksum_of(tmp_path / "file", like) == "crc32c:4waSgw=="
