"""Exchanges among devices, as a compiled program spells them.

Four spellings are known: a plain instruction; a `-start` and a `-done` between which others run; a
wrapped `async-start`; and a fusion.  A fusion that cuts an all-reduce to a shard is a
reduce-scatter.  A fusion that begins an exchange hides it inside the fusions that follow, each of
which holds a copy of it, until one ends it.
"""

import math
import re
from typing import NamedTuple

from onediff_jax.plan.hlo import Instruction, Program, bytes_of

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all")


class Collective(NamedTuple):
    """One exchange, or where one ends."""

    kind: str
    bytes: int = 0  # on a device, of the larger side: all-gather's result, reduce-scatter's operand
    group: int = 1  # devices that exchange
    begins: str = ""  # the name by which its end is known; empty: it is whole
    ends: str = ""  # the name of the exchange that ends here

    @property
    def sent(self) -> float:
        """Bytes that a ring of the group moves over every link."""
        if self.kind == "collective-permute":
            return float(self.bytes)
        return self.bytes * (self.group - 1) / self.group * (1 + (self.kind == "all-reduce"))


def collective_of(program: Program, computation: str, held: Instruction) -> Collective | None:
    """The exchange that an instruction of a computation is, begins or ends; None for the others."""
    begins = ""
    if wrapped := held.named("calls"):
        inside = program.inside(wrapped)
        found = next((i for i in inside if base(i.kind)), None)
        if found is None:
            return None
        chain = re.search(r'chain_id="(\d+)"', found.rest)
        targets = {t for i in inside for t in re.findall(r'call_target="(\w+)"', i.rest)}
        if held.kind == "async-done":
            return Collective(base(found.kind), ends=held.operands[0])
        if held.kind == "async-start":
            begins = held.name
        elif "AsyncCollectiveStart" in targets:
            begins = f"chain {chain and chain[1]}"
        elif "AsyncCollectiveDone" in targets:
            return Collective(base(found.kind), ends=f"chain {chain and chain[1]}")
        elif chain:
            return None
        results = {i.name: i.result for i in inside}
    elif held.kind.endswith("-done") and base(held.kind):
        return Collective(base(held.kind), ends=held.operands[0])
    elif base(held.kind):
        found, inside = held, ()
        begins = held.name if held.kind.endswith("-start") else ""
        results = {i.name: i.result for i in program.computations[computation]}
    else:
        return None
    kind = base(found.kind)
    taken = sum(bytes_of(results.get(name, "")) for name in found.operands)
    returned = bytes_of(found.result)
    if found.kind.endswith("-start") and kind != "all-reduce":
        returned -= taken  # a start returns its operands as well
    if kind == "all-reduce" and "dynamic-slice" in {i.kind for i in inside}:
        kind = "reduce-scatter"
    return Collective(kind, max(taken, returned), group_of(found), begins)


def base(kind: str) -> str:
    """The kind of exchange that an opcode is or begins; empty for other opcodes."""
    kind = kind.removesuffix("-start").removesuffix("-done")
    return kind if kind in KINDS else ""


def group_of(instruction: Instruction) -> int:
    """Devices that exchange; 2 for a permutation."""
    if base(instruction.kind) == "collective-permute":
        return 2
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", instruction.rest):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", instruction.rest):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}", instruction.rest):
        sizes = dict(re.findall(r"('\w+')=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in found[2].split(","))
    raise ValueError(f"no groups are known of {instruction.name}: {instruction.rest[:200]}")
