"""The kind of device that a program is traced for."""

import jax
from jax.sharding import AbstractDevice, AbstractMesh, PartitionSpec

from onediff_jax.ops import device


def test_a_program_is_traced_for_the_device_that_is_here():
    assert device.kind() == jax.devices()[0].device_kind


def test_inside_a_mesh_of_absent_devices_a_program_is_traced_for_those():
    absent = AbstractDevice(device_kind="TPU v3", num_cores=1, platform="tpu")
    mesh, seen = AbstractMesh((2,), ("x",), abstract_device=absent), []

    def run(x):
        seen.append(device.kind())
        return x

    spec = PartitionSpec("x")
    jax.eval_shape(
        jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec),
        jax.ShapeDtypeStruct((4,), jax.numpy.float32),
    )
    assert set(seen) == {"TPU v3"}
