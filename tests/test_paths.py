"""Paths here and in object storage: what a root does to them, and those that are not there."""

import pathlib

import fsspec
import pytest
from etils import epath

from onediff_jax import paths
from onediff_jax.errors import InputError
from onediff_jax.paths import absolute, folder_is_there, opened_path, remote, under


@pytest.mark.parametrize(
    ("root", "path", "found"),
    [
        ("", "caches/a", "caches/a"),
        ("gs://bucket", "caches/a", "gs://bucket/caches/a"),
        ("gs://bucket/", "./caches/a/", "gs://bucket/caches/a"),
        ("gs://bucket/mine", "../other", "gs://bucket/other"),
        ("/data", "caches/a", "/data/caches/a"),
        ("data", "caches/a", "data/caches/a"),
        ("~/data", "caches/a", "~/data/caches/a"),
        ("gs://bucket", "", ""),
        ("gs://bucket", "/data/a", "/data/a"),
        ("gs://bucket", "~/a", "~/a"),
        ("/data", "gs://other/a", "gs://other/a"),
    ],
)
def test_relative_paths_begin_at_the_root_and_others_stay(root, path, found):
    assert under(root, path) == found


def test_paths_of_buckets_are_whole_and_others_begin_at_the_root(monkeypatch, tmp_path, bucket):
    monkeypatch.chdir(tmp_path)
    assert str(absolute(epath.Path("gs://bucket/run"))) == "gs://bucket/run"
    assert str(absolute(pathlib.Path("run"))) == str(tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(absolute("~/run")) == str(opened_path("~/run")) == str(tmp_path / "run")
    assert remote(epath.Path("gs://bucket/run")) and not remote(epath.Path("/data/gs"))


def test_what_reads_a_bucket_and_is_missing_is_named(monkeypatch):
    def missing(scheme):
        raise ImportError(f"no {scheme}")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"gs://b/x cannot be read: .*onediff_jax\[gcs\]") as said:
        opened_path("gs://b/x")
    assert "\n" not in str(said.value)
    with pytest.raises(InputError, match=r"s3://b/x cannot be read: .*gs://BUCKET/... alone"):
        opened_path("s3://b/x")


def test_a_bucket_that_refuses_to_answer_is_told_in_one_line(bucket, monkeypatch):
    (bucket / "there" / "file").write_text("1")
    assert folder_is_there(bucket / "there") and not folder_is_there("gs://other/there")

    def refused(self, path, **kwargs):
        raise RuntimeError("Anonymous caller\nhas no access")

    monkeypatch.setattr(type(fsspec.filesystem("gs")), "isdir", refused)
    with pytest.raises(InputError, match="gs://bucket/there .*Anonymous caller has no .*gcloud"):
        folder_is_there(bucket / "there")
