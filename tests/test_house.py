"""The house: imports point down, files stay small, importing does nothing."""

import ast
import subprocess
import sys

import pytest
from places import ROOT

PACKAGE = ROOT / "onediff_jax"

# Lowest first.  Rooms of a floor are neighbours: neither imports the other.
FLOORS = [
    {"errors"},
    {"paths", "settings"},
    {"ops", "sharding", "processes"},
    {"copies"},
    {"models", "data"},
    {"release"},
    {"sampling"},
    {"evaluate"},
    {"train"},
    {"config", "plan"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

LINES = 450

FILES = {
    ".".join(["onediff_jax", *file.relative_to(PACKAGE).with_suffix("").parts]): file
    for file in sorted(PACKAGE.rglob("*.py"))
    if file.name != "modeling_nextdit.py"  # PyTorch, for exported folders
}
MODULES = {name.removesuffix(".__init__"): file for name, file in FILES.items()}


def imported(module: str, at_import: bool = False) -> set[str]:
    """Full names of what a module imports, and of what it takes `from` there."""
    tree = ast.parse(MODULES[module].read_text())
    nodes, found = [tree], set()
    while nodes:
        node = nodes.pop()
        if at_import and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:  # relative: counted from the package
                inside = MODULES[module].name == "__init__.py"
                above = module.split(".")[: len(module.split(".")) - node.level + inside]
                start = ".".join([*above, start]).rstrip(".")
            found |= {start} | {f"{start}.{alias.name}" for alias in node.names}
        nodes += ast.iter_child_nodes(node)
    return found


def modules_in(names: set[str]) -> set[str]:
    """Modules of this package among imported names."""
    return {name for name in names if name in MODULES and name != "onediff_jax"}


def room(module: str) -> str:
    """The folder or file directly in the package."""
    return module.split(".")[1]


def test_every_file_has_a_floor():
    assert {room(module) for module in MODULES if module != "onediff_jax"} == set(FLOOR)


def test_imports_point_down_and_neighbours_never_meet():
    edges = [(a, b) for a in MODULES for b in modules_in(imported(a)) if a != "onediff_jax"]
    assert len(edges) > 50
    edges = [edge for edge in edges if edge[1] != "onediff_jax.cli"]  # flags of the commands
    up = [(a, b) for a, b in edges if room(a) != room(b) and FLOOR[room(b)] >= FLOOR[room(a)]]
    assert up == []
    assert not modules_in(imported("onediff_jax"))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from onediff_jax.train import tune", {"onediff_jax.train", "onediff_jax.train.tune"}),
        ("def f():\n    import onediff_jax.cli", {"onediff_jax.cli"}),
        ("from . import rope", {"onediff_jax.ops", "onediff_jax.ops.rope"}),
        ("from ..data.text import END", {"onediff_jax.data.text"}),
        ("if True:\n    from onediff_jax import sharding", {"onediff_jax.sharding"}),
    ],
)
def test_imports_are_seen_wherever_and_however_they_are_written(
    tmp_path, monkeypatch, source, found
):
    (tmp_path / "new.py").write_text(source)
    monkeypatch.setitem(MODULES, "onediff_jax.ops.new", tmp_path / "new.py")
    assert modules_in(imported("onediff_jax.ops.new")) == found
    inside = set() if source.startswith("def") else found
    assert modules_in(imported("onediff_jax.ops.new", at_import=True)) == inside


def test_no_file_is_long_and_none_is_a_drawer():
    lengths = {name: len(file.read_text().splitlines()) for name, file in FILES.items()}
    assert {name: length for name, length in lengths.items() if length > LINES} == {}
    drawers = ("util", "utils", "helper", "helpers", "misc", "common")
    assert [name for name in FILES if name.rsplit(".", 1)[1] in drawers] == []


def test_nothing_that_the_data_room_loads_imports_jax():
    reached, waiting = set(), [module for module in MODULES if room(f"{module}.") == "data"]
    assert "onediff_jax.data.batching.loader" in waiting
    guilty = []
    while waiting:
        module = waiting.pop()
        reached.add(module)
        names = imported(module, at_import=True)
        guilty += [
            (module, name) for name in names if name.split(".")[0] in ("jax", "flax", "optax")
        ]
        waiting += modules_in(names) - reached
    assert "onediff_jax.ops.patches" in reached
    assert guilty == []


def devices_after(program: str) -> str:
    """Whether a program, run on its own, has woken up JAX's devices."""
    asked = "\nfrom jax._src import xla_bridge\nprint(xla_bridge.backends_are_initialized())"
    command = [sys.executable, "-W", "ignore", "-c", program + asked]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_importing_the_loader_touches_no_device():
    assert devices_after("import onediff_jax.data.batching.loader") == "False"


def test_importing_touches_no_device_parses_no_flag_and_prints_nothing():
    names = ", ".join(sorted(MODULES))
    program = f"import {names}\nfrom absl import flags\nassert not flags.FLAGS.is_parsed()"
    assert devices_after(program) == "False"
    assert devices_after("import jax\njax.devices()") == "True"
