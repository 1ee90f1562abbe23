"""TPU slices by their cloud names, and what one device of each generation has.

v3, v4 and v5p are counted in cores, two on a chip; v5e and v6e in chips.  To JAX a device is a core
on v3, and a chip on the others.  One device alone, v3-1, v4-2, v5e-1, v5p-2 or v6e-1, can be
planned for as well, though not all can be had: a program for it says what a device needs.
"""

import dataclasses
import difflib
import importlib.util
import math
import os
from typing import Any, NamedTuple

from onediff_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generation of TPU; rates are of one JAX device.

    Documented: `peak`, `memory_rate`.  The compiler's: `memory`, above which it refuses a program.
    `clock` makes the compiler's cycles seconds: the documented one, at which a lone matmul
    [3072, 3840] x [3840, 10240] in bfloat16 comes out at 96 % of peak on v3, 97 % on v4 and v5p,
    98 % on v5e and 90 % on v6e.  `link` is what a ring along one axis of the slice carries.
    """

    kind: str  # as JAX names the device
    counted: int  # cores of a chip, where the cloud counts cores; else 1
    devices: int  # of a chip
    peak: float  # bfloat16 FLOP/s
    clock: float  # Hz
    memory: float  # GiB
    memory_rate: float  # bytes/s
    link: float  # bytes/s
    chips: tuple[str, ...]  # slices, as chips along each axis


SQUARES = ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16", "16x32", "32x32")
SMALL_SQUARES = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")

HOST = 4  # chips of a machine

GENERATIONS = {
    "v3": Generation("TPU v3", 2, 2, 61.5e12, 940e6, 15.48, 450e9, 82e9, SQUARES),
    "v4": Generation("TPU v4", 2, 1, 275e12, 1050e6, 30.75, 1228e9, 90e9, CUBES),
    "v5e": Generation("TPU v5 lite", 1, 1, 197e12, 1500e6, 15.75, 819e9, 90e9, SMALL_SQUARES),
    "v5p": Generation("TPU v5", 2, 1, 459e12, 1750e6, 95.74, 2765e9, 180e9, CUBES),
    "v6e": Generation("TPU v6 lite", 1, 1, 918e12, 1750e6, 31.25, 1640e9, 180e9, SMALL_SQUARES),
}
PREFIXES = {"v5litepod": "v5e"}


class Topology(NamedTuple):
    """A slice."""

    name: str  # the cloud's
    generation: Generation
    cores: int  # as the cloud counts
    devices: int  # as JAX counts
    shape: str  # libtpu's name, such as v3:8x16, of the slice or of one that holds it

    @property
    def hosts(self) -> int:
        """Machines, of four chips each; those of v5e-8 and v6e-8 have eight."""
        chips = self.devices // self.generation.devices
        return 1 if self.shape in ("v5e:2x4", "v6e:2x4") else max(chips // HOST, 1)


def topologies() -> dict[str, Topology]:
    """All known slices, by the cloud's name."""
    found = {}
    for prefix, generation in GENERATIONS.items():
        alone = generation.counted // generation.devices
        smallest = f"{prefix}:{generation.chips[0]}"
        found[f"{prefix}-{alone}"] = Topology(f"{prefix}-{alone}", generation, alone, 1, smallest)
        for shape in generation.chips:
            chips = math.prod(map(int, shape.split("x")))
            cores = chips * generation.counted
            devices = chips * generation.devices
            name = f"{prefix}-{cores}"
            found[name] = Topology(name, generation, cores, devices, f"{prefix}:{shape}")
    return found


def topology_of(name: str) -> Topology:
    """A slice by the cloud's name, such as v3-256 or v5litepod-16.

    Raises InputError naming those of the generation, or the generations.
    """
    known = topologies()
    prefix, _, count = name.partition("-")
    prefix = PREFIXES.get(prefix, prefix)
    if f"{prefix}-{count}" in known:
        return known[f"{prefix}-{count}"]
    of_generation = [n for n in known if n.startswith(f"{prefix}-")]
    near = of_generation or difflib.get_close_matches(name, known, n=3) or GENERATIONS
    raise InputError(f"topology is {name!r}; it can be {', '.join(near)}.")


def devices_of(topology: Topology) -> list[Any]:
    """JAX devices of the slice: programs compile for them, and none runs.

    Raises InputError where libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"topology is {topology.name!r}, and the TPU compiler is not installed; "
            "pip install -e '.[tpu]' brings it."
        )
    # Without these, libtpu asks the cloud's metadata server for a TPU, and locks the one it finds.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies as absent

    options = {"chip_config_name": "megacore"} if topology.generation.kind == "TPU v4" else {}
    slice_of = absent.get_topology_desc(topology.shape, "tpu", **options)
    return list(slice_of.devices)[: topology.devices]
