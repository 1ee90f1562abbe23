"""Folders of the repository that tests read."""

import pathlib

SUPPORT = pathlib.Path(__file__).parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent
TOOLS = ROOT / "tools"
COMMANDS = ROOT / "onediff_jax" / "commands"
