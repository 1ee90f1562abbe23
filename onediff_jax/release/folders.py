"""Folders that appear complete or never, and what released ones hold beside their networks."""

import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Sequence

from onediff_jax.errors import InputError
from onediff_jax.release.tensors import PICKLES

PRETRAINED = ("vae", "text_encoder", "tokenizer", "scheduler")  # parts that are never trained
CARD = "README.md"


@contextlib.contextmanager
def new_folder(path: pathlib.Path, force: bool) -> Iterator[pathlib.Path]:
    """A folder beside `path`, which takes its place when the statement ends well.

    Raises InputError where there is something already, unless `force` says that it may go.
    """
    if path.exists() and not force and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path} exists; give another --out, or --force to replace it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{os.getpid()}.partial")
    made.mkdir()
    try:
        yield made
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        made.rename(path)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def bring_pretrained(
    source: pathlib.Path, target: pathlib.Path, link: bool, but: Sequence[str] = ()
) -> list[str]:
    """Copies the parts that are never trained, or links to them; returns which there are.

    Pickles and hidden files stay behind, and so do the parts named in `but`.
    """
    parts = [part for part in PRETRAINED if (source / part).is_dir() and part not in but]
    for part in parts:
        if link:
            (target / part).symlink_to((source / part).resolve(), target_is_directory=True)
        else:
            ignored = shutil.ignore_patterns(".*", *(f"*{suffix}" for suffix in PICKLES))
            shutil.copytree(source / part, target / part, ignore=ignored)
    return parts


def licence_in(folder: pathlib.Path) -> str | None:
    """The licence that a folder's model card names; else the first line of its licence's text."""
    card = folder / CARD
    if card.is_file():
        text = card.read_text(errors="replace")
        head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        if head and (named := re.search(r"^license: *[\"']?([^\"'\n]+)", head[1], re.MULTILINE)):
            return named[1].strip()
    for name in ("LICENSE", "LICENSE.md", "LICENSE.txt"):
        if (folder / name).is_file():
            lines = (folder / name).read_text(errors="replace").split("\n")
            return next((line.strip(" #") for line in lines if line.strip(" #")), None)
    return None
