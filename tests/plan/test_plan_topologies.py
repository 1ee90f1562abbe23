"""Slices by their cloud names; the compiler's own word for them where it is installed."""

import importlib.util

import pytest

from onediff_jax.errors import InputError
from onediff_jax.plan.topologies import GENERATIONS, devices_of, topologies, topology_of
from onediff_jax.train.metrics import PEAKS


@pytest.mark.parametrize(
    ("name", "cores", "devices", "shape", "hosts"),
    [
        # cloud.google.com/tpu/docs, "TPU types": v3-32 is 16 chips, v4-8 and v5p-8 are 4.
        ("v3-1", 1, 1, "v3:2x2", 1),
        ("v5p-2", 2, 1, "v5p:2x2x1", 1),
        ("v6e-1", 1, 1, "v6e:2x2", 1),
        ("v3-8", 8, 8, "v3:2x2", 1),
        ("v3-32", 32, 32, "v3:4x4", 4),
        ("v3-256", 256, 256, "v3:8x16", 32),
        ("v3-2048", 2048, 2048, "v3:32x32", 256),
        ("v4-8", 8, 4, "v4:2x2x1", 1),
        ("v4-256", 256, 128, "v4:4x4x8", 32),
        ("v5e-8", 8, 8, "v5e:2x4", 1),
        ("v5litepod-256", 256, 256, "v5e:16x16", 64),
        ("v5p-128", 128, 64, "v5p:4x4x4", 16),
        ("v6e-256", 256, 256, "v6e:16x16", 64),
    ],
)
def test_slices_are_counted_as_the_cloud_counts(name, cores, devices, shape, hosts):
    found = topology_of(name)
    assert (found.cores, found.devices, found.shape, found.hosts) == (cores, devices, shape, hosts)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v3-100", "v3-1, v3-8, v3-32, v3-64, v3-128, v3-256"),
        ("v5litepod-3", "v5e-1, v5e-4, v5e-8"),
        ("v7-256", "v6e-256"),
        ("nonsense", "v3, v4, v5e, v5p, v6e"),
    ],
)
def test_an_unknown_slice_is_answered_with_those_there_are(name, said):
    with pytest.raises(InputError, match=f"topology is '{name}'; it can be .*{said}"):
        topology_of(name)


def test_peaks_are_those_that_training_reports_against():
    assert {g.kind: g.peak for g in GENERATIONS.values()}.items() <= PEAKS.items()


def test_without_the_compiler_the_way_to_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[tpu\]'"):
        devices_of(topology_of("v3-8"))


@pytest.mark.pod
@pytest.mark.parametrize("name", [n for n, t in topologies().items() if t.devices <= 2048])
def test_the_compiler_knows_every_slice(name):
    pytest.importorskip("libtpu")
    topology = topology_of(name)
    devices = devices_of(topology)
    assert len(devices) == topology.devices
    assert {device.device_kind for device in devices} == {topology.generation.kind}
    if topology.shape not in ("v5e:2x4", "v6e:2x4"):  # the compiler's are of two hosts
        assert len({device.process_index for device in devices}) == topology.hosts
