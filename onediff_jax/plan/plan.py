"""The plan of a run on a TPU slice that need not be here: memory, MFU, samples a second."""

import math
from collections import Counter
from typing import Any, NamedTuple

import jax

from onediff_jax.data.batching.settings import examples_per_row
from onediff_jax.plan.compiled import Compiled, compile_step
from onediff_jax.plan.estimate import Estimate, estimate_of
from onediff_jax.plan.topologies import Topology, devices_of
from onediff_jax.train.compile import Shapes, planned_step
from onediff_jax.train.config import RunConfig
from onediff_jax.train.metrics import StepFlops, step_flops
from onediff_jax.train.prepare import prepare
from onediff_jax.train.state import parameter_count

DAY = 24 * 60 * 60
ESTIMATED = (
    "estimated_compute_seconds",
    "estimated_communication_seconds",
    "estimated_mfu",
    "estimated_mfu_with_communication",
    "estimated_mfu_with_encoders",
    "estimated_mfu_with_encoders_and_communication",
)


class Plan(NamedTuple):
    """A run's step on a slice, compiled and estimated; nothing of it was run."""

    topology: Topology
    steps: int
    samples: float  # of a step
    params: int  # that are trained
    flops: StepFlops
    held: dict[str, int]  # bytes of what a device is given, by kind, padding left out
    compiled: Compiled
    estimate: Estimate

    @property
    def limit(self) -> int:
        """Bytes that the compiler lets a program use on a device."""
        return int(self.topology.generation.memory * 2**30)

    @property
    def used(self) -> float:
        """Share of them that the step uses."""
        return self.compiled.bytes / self.limit

    @property
    def fits(self) -> bool:
        """Whether the compiler found room for the step."""
        return not self.compiled.refusal

    def mfu(self, seconds: float, encoders: bool = False) -> float:
        """Model FLOPs over what all devices could do in so many seconds.

        With `encoders` the forward passes of pretrained encoders inside the step count as well.
        """
        peak = self.topology.generation.peak * self.topology.devices
        return (self.flops.total if encoders else self.flops.model) / (seconds * peak)

    @property
    def samples_per_second(self) -> float:
        """With exposed communication."""
        return self.samples / self.estimate.seconds

    @property
    def samples_per_host(self) -> float:
        """Samples a second that every host must read, so that no step waits for data."""
        return self.samples_per_second / self.topology.hosts

    @property
    def days(self) -> float:
        """Of the whole run, with exposed communication."""
        return self.steps * self.estimate.seconds / DAY

    def as_json(self) -> dict[str, Any]:
        """The plan's numbers; bytes and seconds are a device's, FLOPs those of all.

        Seconds of communication are those on the wire; MFU with communication counts of them what
        compute does not hide.  Of a step that does not fit, estimates are None.
        """
        estimate = self.estimate
        estimated = dict.fromkeys(ESTIMATED)
        if self.fits:
            times = (estimate.compute, estimate.seconds)
            mfus = [self.mfu(each, encoders) for encoders in (False, True) for each in times]
            numbers = (estimate.compute, estimate.wire, *mfus)
            estimated = dict(zip(ESTIMATED, (round(n, 6) for n in numbers), strict=True))
        return {
            "topology": self.topology.name,
            "cores": self.topology.cores,
            "steps": self.steps,
            "samples": self.samples,
            "params": self.params,
            "hbm_bytes": self.compiled.bytes,
            "hbm_limit_bytes": self.limit,
            "fits": self.fits,
            "model_flops": self.flops.model,
            "encoder_flops": self.flops.total - self.flops.model,
            **estimated,
            "collectives": {
                kind: {"count": traffic.count, "bytes": traffic.bytes}
                for kind, traffic in sorted(estimate.traffic.items())
            },
            "compile_seconds": round(self.compiled.seconds, 1),
        }


def plan_of(config: RunConfig, topology: Topology, states: bool = False) -> Plan:
    """The plan of a run; no data is read.  `states`: of prompts are in caches, made ahead.

    Raises InputError where the run's mesh or rows do not suit the slice, or the compiler refuses
    the step for another reason than memory.
    """
    run = prepare(config, devices=devices_of(topology), absent=True)
    step, shapes = planned_step(run, states)
    made = compile_step(step.step, shapes)
    return Plan(
        topology,
        config.steps,
        config.rows * examples_per_row(config.data),
        parameter_count(shapes.state.params),
        step_flops(run.networks, run.layout, config.rows, config.text.length, shapes.pretrained),
        held_bytes(shapes),
        made,
        estimate_of(made.program, topology.generation),
    )


def held_bytes(shapes: Shapes) -> dict[str, int]:
    """Bytes of what a device is given, by kind."""
    kinds = {**shapes.state._asdict(), "batch": shapes.batch, "encoders": shapes.pretrained}
    found = Counter(
        {
            kind: sum(
                math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
                for leaf in jax.tree.leaves(part)
            )
            for kind, part in kinds.items()
        }
    )
    return {kind: size for kind, size in found.most_common() if size and kind != "step"}
