"""A compiled program's text (HLO, scheduled, one device's share) as the instructions that run.

An accelerator runs a computation's instructions one after the other, in the order of the text;
`while`, `call` and `conditional` run further computations.  A fusion runs as one instruction: what
is inside it tells what kind of work it is, and never how often or how long.

Collectives are written in four ways: a plain instruction; a `-start` and a `-done` between which
others run; a wrapped `async-start`; and a fusion.  A fusion that cuts an all-reduce to a shard is a
reduce-scatter.  A fusion that begins a collective hides it inside the fusions that follow, each of
which holds a copy of it, until one ends it.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all")
TYPE_BITS = {"pred": 8, "token": 0}  # bits; of other types the name says it


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of the text."""

    name: str
    kind: str  # the opcode, such as fusion or all-gather-start
    result: str  # the type of what comes back
    arguments: str  # between the parentheses
    rest: str  # attributes, metadata and the compiler's notes

    @property
    def operands(self) -> tuple[str, ...]:
        """Names of the instructions whose results it takes."""
        return tuple(re.findall(r"%([\w.\-]+)", self.arguments))

    @property
    def cycles(self) -> int:
        """The compiler's estimate; 0 where it gives none."""
        found = re.search(r'"estimated_cycles":"?(\d+)', self.rest)
        return int(found[1]) if found else 0

    @property
    def source(self) -> str:
        """Where in the traced program it comes from; empty where the compiler made it."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    def named(self, attribute: str) -> str:
        """The computation that an attribute names, such as `body` or `calls`; empty without one."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""

    @property
    def branches(self) -> list[str]:
        """The computations that a conditional chooses from."""
        if found := re.search(r"branch_computations=\{([^}]*)\}", self.rest):
            return re.findall(r"[\w.\-]+", found[1])
        return [self.named("true_computation"), self.named("false_computation")]


def bytes_of(result: str) -> int:
    """Bytes of a type's arrays together, padding to tiles left out."""
    total = 0
    for kind, sizes in re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\]", result):
        bits = TYPE_BITS[kind] if kind in TYPE_BITS else int(re.findall(r"\d+", kind)[0])
        for size in filter(None, sizes.split(",")):
            bits *= int(size)
        total += -(-bits // 8)
    return total


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """All computations by name, and the name of the one that runs first."""

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str

    def running(self, computation: str = "", times: int = 1) -> Iterator[tuple[Instruction, int]]:
        """Every instruction that runs and how often, from the entry or another computation on.

        What a loop or a call runs is listed in its place; of a conditional, the longest branch.
        """
        for instruction in self.computations[computation or self.entry]:
            if inner := self.inner(instruction):
                yield from self.running(inner, times * (self.trips(instruction) or 1))
            else:
                yield instruction, times

    def inner(self, instruction: Instruction) -> str:
        """The computation that a loop, call or conditional runs; empty for the others."""
        if instruction.kind == "conditional":
            return max(instruction.branches, key=self.cycles)
        return instruction.named({"while": "body", "call": "to_apply"}.get(instruction.kind, "-"))

    def trips(self, instruction: Instruction) -> int | None:
        """How often it runs its inner computation; None where a loop does not say.

        A loop says so in the compiler's notes, or compares its counter, which starts at 0, to a
        constant.
        """
        if instruction.kind != "while":
            return 1
        if found := re.search(r'"known_trip_count":\{"n":"?(\d+)', instruction.rest):
            return int(found[1])
        condition = self.computations[instruction.named("condition")]
        limits = [i.arguments for i in condition if i.kind == "constant" and "s32" in i.result]
        return max(map(int, limits), default=None)

    @property
    def unknown_loops(self) -> list[str]:
        """Loops of which `trips` knows nothing; they count once."""
        every = itertools.chain.from_iterable(self.computations.values())
        return [i.name for i in every if self.trips(i) is None]

    def cycles(self, computation: str = "") -> int:
        """The compiler's estimates, summed over what runs from there on."""
        return sum(i.cycles * times for i, times in self.running(computation))

    def inside(self, computation: str) -> tuple[Instruction, ...]:
        """The instructions of a fused or wrapped computation and of those it is made of."""
        own = self.computations.get(computation, ())
        below = (self.inside(i.named("calls")) for i in own if i.named("calls"))
        return (*own, *itertools.chain.from_iterable(below))


def program_of(text: str) -> Program:
    """The program that a compiled executable's `as_text()` shows."""
    computations: dict[str, list[tuple[str, str]]] = {}
    name = entry = ""
    for line in text.splitlines():
        if not name:
            start = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
            if start and not line.startswith("HloModule"):
                name = start[2]
                entry = name if start[1] else entry
                computations[name] = []
        elif line == "}":
            name = ""
        elif found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line):
            computations[name].append((found[1], line[found.end() :]))
        else:  # a kernel's metadata may go on over several lines
            before = computations[name].pop()
            computations[name].append((before[0], f"{before[1]} {line}"))
    return Program(
        {name: tuple(instruction_of(*one) for one in body) for name, body in computations.items()},
        entry,
    )


def instruction_of(name: str, text: str) -> Instruction:
    """An instruction from what follows its name: type, opcode, arguments, attributes."""
    end = closing_index(text, 0) + 1 if text[0] == "(" else text.index(" ")
    opens = text.index("(", end)
    closes = closing_index(text, opens)
    kind = text[end:opens].strip()
    return Instruction(name, kind, text[:end], text[opens + 1 : closes], text[closes + 1 :])


def closing_index(text: str, opening: int) -> int:
    """Where the parenthesis that opens at `opening` is closed."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


class Collective(NamedTuple):
    """One collective, or where one ends."""

    kind: str
    bytes: int = 0  # on a device, of the larger side: all-gather's result, reduce-scatter's operand
    group: int = 1  # devices that take part
    begins: str = ""  # the name by which its end is known; empty: it is whole
    ends: str = ""  # the name of the collective that ends here

    @property
    def sent(self) -> float:
        """Bytes that a ring of the group moves over every link."""
        if self.kind == "collective-permute":
            return float(self.bytes)
        return self.bytes * (self.group - 1) / self.group * (1 + (self.kind == "all-reduce"))


def collective_of(program: Program, computation: str, held: Instruction) -> Collective | None:
    """The collective that an instruction of a computation is, begins or ends; None for others."""
    begins = ""
    if wrapped := held.named("calls"):
        inside = program.inside(wrapped)
        found = next((i for i in inside if collective_kind(i.kind)), None)
        if found is None:
            return None
        chain = re.search(r'chain_id="(\d+)"', found.rest)
        targets = {t for i in inside for t in re.findall(r'call_target="(\w+)"', i.rest)}
        if held.kind == "async-done":
            return Collective(collective_kind(found.kind), ends=held.operands[0])
        if held.kind == "async-start":
            begins = held.name
        elif "AsyncCollectiveStart" in targets:
            begins = f"chain {chain and chain[1]}"
        elif "AsyncCollectiveDone" in targets:
            return Collective(collective_kind(found.kind), ends=f"chain {chain and chain[1]}")
        elif chain:
            return None
        results = {i.name: i.result for i in inside}
    elif held.kind.endswith("-done") and collective_kind(held.kind):
        return Collective(collective_kind(held.kind), ends=held.operands[0])
    elif collective_kind(held.kind):
        found, inside = held, ()
        begins = held.name if held.kind.endswith("-start") else ""
        results = {i.name: i.result for i in program.computations[computation]}
    else:
        return None
    kind = collective_kind(found.kind)
    operands = sum(bytes_of(results.get(name, "")) for name in found.operands)
    returned = bytes_of(found.result)
    if found.kind.endswith("-start") and kind != "all-reduce":
        returned -= operands  # a start returns its operands as well
    if kind == "all-reduce" and "dynamic-slice" in {i.kind for i in inside}:
        kind = "reduce-scatter"
    return Collective(kind, max(operands, returned), group_size(found), begins)


def collective_kind(opcode: str) -> str:
    """The collective that an opcode is, begins or ends; empty for other opcodes."""
    kind = opcode.removesuffix("-start").removesuffix("-done")
    return kind if kind in COLLECTIVES else ""


def group_size(instruction: Instruction) -> int:
    """Devices that take part in a collective; 2 for a permutation."""
    if collective_kind(instruction.kind) == "collective-permute":
        return 2
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", instruction.rest):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", instruction.rest):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}", instruction.rest):
        sizes = dict(re.findall(r"('\w+')=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in found[2].split(","))
    raise ValueError(f"no groups are known of {instruction.name}: {instruction.rest[:200]}")
