"""Settings of all tests: eight devices on the host, exact products."""

import os

os.environ["JAX_PLATFORMS"] = os.environ.get("TEST_PLATFORM", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    # Devices must meet in one order: two that wait for each other at different sums wait for ever.
    + " --xla_cpu_enable_concurrency_optimized_scheduler=false"
)

import jax
import pytest
from absl import flags

jax.config.update("jax_default_matmul_precision", "highest")
flags.FLAGS.mark_as_parsed()  # grain reads flags of its own
pytest.register_assert_rewrite("picture_packages")  # it has fixtures and assertions


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """The path of an empty bucket in memory; copies of what is in it have a folder of their own."""
    import importlib

    from buckets import Bucket
    from etils import epath
    from etils.epath import backend

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Bucket, "breaks_at", None)
    for name, empty in (("store", {}), ("written", []), ("put", []), ("read", [])):
        monkeypatch.setattr(Bucket, name, empty)
    known = importlib.import_module("fsspec.registry")._registry
    for scheme in ("gcs", "gs"):
        monkeypatch.setitem(known, scheme, Bucket)
    backend.fsspec_backend._get_filesystem.cache_clear()
    yield epath.Path("gs://bucket")
    backend.fsspec_backend._get_filesystem.cache_clear()
