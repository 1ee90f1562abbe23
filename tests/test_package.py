"""The rules of the tree: imports point down, folders and files stay small, a name has one home."""

import ast
import collections
import pathlib
import re
import subprocess
import sys

import pytest
from places import ROOT

PACKAGE = ROOT / "onediff_jax"

# Lowest first.  Folders and files of one layer do not import each other.
LAYERS = [
    {"errors"},
    {"settings", "paths"},
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
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}

LINES = 450  # of a file
MODULES_OF_FOLDER = 16

EXPORTED = PACKAGE / "release" / "modeling_nextdit.py"  # goes to users, alone, and needs torch
FILES = {
    ".".join(["onediff_jax", *file.relative_to(PACKAGE).with_suffix("").parts]): file
    for file in sorted(set(PACKAGE.rglob("*.py")) - {EXPORTED})
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
            assert not node.level, f"{module} has a relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        nodes += ast.iter_child_nodes(node)
    return found


def modules_in(names: set[str]) -> set[str]:
    """Modules of this package among imported names."""
    return {name for name in names if name in MODULES and name != "onediff_jax"}


def part_of(module: str) -> str:
    """The folder or file directly in the package."""
    return module.split(".")[1]


def test_imports_point_down_and_equal_layers_never_meet():
    assert {part_of(module) for module in MODULES if module != "onediff_jax"} == set(LAYER)
    edges = [(a, b) for a in MODULES for b in modules_in(imported(a)) if a != "onediff_jax"]
    up = [
        (a, b)
        for a, b in edges
        if part_of(a) != part_of(b) and LAYER[part_of(b)] >= LAYER[part_of(a)]
    ]
    assert up == []
    assert not modules_in(imported("onediff_jax"))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from onediff_jax.train import run", {"onediff_jax.train"}),
        ("def f():\n    import onediff_jax.cli", {"onediff_jax.cli"}),
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


def test_nothing_that_loader_workers_import_imports_jax():
    reached, waiting, guilty = set(), [m for m in MODULES if part_of(f"{m}.") == "data"], []
    while waiting:
        module = waiting.pop()
        reached.add(module)
        names = imported(module, at_import=True)
        guilty += [(module, n) for n in names if n.split(".")[0] in ("jax", "flax", "optax")]
        waiting += modules_in(names) - reached
    assert "onediff_jax.ops.patches" in reached and guilty == []


def test_files_and_folders_are_small():
    lengths = {name: len(file.read_text().splitlines()) for name, file in FILES.items()}
    assert {name: length for name, length in lengths.items() if length > LINES} == {}
    folders = collections.Counter(file.parent for name, file in FILES.items() if name in MODULES)
    assert {f: count for f, count in folders.items() if count > MODULES_OF_FOLDER} == {}
    drawers = ("util", "utils", "helper", "helpers", "misc", "common")
    assert [name for name in FILES if name.rsplit(".", 1)[1] in drawers] == []


def names_defined_in(file: pathlib.Path) -> set[str]:
    """Public names that a file defines at its top level."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def test_a_public_name_is_defined_in_one_module():
    homes = collections.defaultdict(list)
    for module, file in MODULES.items():
        for name in names_defined_in(file) - {"run"}:  # of every command
            homes[name].append(module)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


def test_the_trees_of_design_and_readme_are_those_of_the_package():
    design = (ROOT / "docs" / "design.md").read_text().split("## The package")[1]
    listed = set(re.findall(r"\w+", design))
    assert {name.rsplit(".", 1)[1] for name in MODULES if "." in name} <= listed
    readme = (ROOT / "README.md").read_text()
    folders = {f"{file.parent.relative_to(PACKAGE)}/" for file in MODULES.values()} - {"./"}
    assert {folder for folder in folders if folder.rsplit("/", 2)[-2] + "/" not in readme} == set()


# Words that this project does not use, and what it says instead.
WORDS = {
    r"colour": "color",
    r"exchanges\b": "collectives",
    r"share of peak": "MFU",
    r"made again|computed anew": "recomputed",
    r"moving average": "EMA",
    r"the roof|data room|strangers": "package, layers, modules",
    r"pictures? (is|are)\b": "image",
    r"shares? of the work": "shard",
}


def test_the_words_are_the_fields_own():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    kinds = (".py", ".md", ".sh", ".yaml")
    files = [n for n in tracked.stdout.splitlines() if n.endswith(kinds)] or sorted(
        str(file.relative_to(ROOT)) for file in PACKAGE.rglob("*.py")
    )
    found = []
    for name in files:
        if name == "tests/test_package.py" or not (ROOT / name).is_file():
            continue
        text = " ".join((ROOT / name).read_text().split())
        found += [(name, m[0]) for word in WORDS for m in re.finditer(word, text)]
    assert found == []


def devices_after(program: str) -> str:
    """Whether a program, run on its own, has initialized JAX's devices."""
    asked = "\nfrom jax._src import xla_bridge\nprint(xla_bridge.backends_are_initialized())"
    command = [sys.executable, "-W", "ignore", "-c", program + asked]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_importing_touches_no_device_parses_no_flag_and_prints_nothing():
    names = ", ".join(sorted(MODULES))
    program = f"import {names}\nfrom absl import flags\nassert not flags.FLAGS.is_parsed()"
    assert devices_after(program) == "False"
    assert devices_after("import jax\njax.devices()") == "True"
