"""Renders 820 textured 3D models, furniture and more, as posed multi-view scenes with depth.

    pip install -e .[render3d]
    python tools/datasets/render_furniture.py --out artifacts/furniture

Every model becomes a folder in nerfstudio's layout: `transforms.json`, `images/` and `depth/`, in
units that `depth_unit_scale_factor` states, 0 where there is nothing.  `metadata.jsonl` has a line
{"file_name": folder, "text": caption, "author": ..., "license": ...} for each, and `LICENSE.txt`
the attributions that the licences ask for; keep it with the images.  `apt-get download` brings
the models, the Debian package sweethome3d-furniture (120 MB), and needs no root; elsewhere
--package names the file.  The same command goes on where it was interrupted.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import importlib.util
import json
import multiprocessing
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from furniture.catalog import Model, caption, models_in
from furniture.meshes import mesh_in
from furniture.views import FOCAL, Caster, orbit_cameras
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress

PACKAGE = "sweethome3d-furniture"
LISTING, CREDITS, SETTINGS = "metadata.jsonl", "LICENSE.txt", "settings.json"
DEPTH_UNIT = 1e-4  # of the model's longest side; 65,535 of them reach beyond every camera's view
HEADER = """The images and depth maps in this folder are renderings of the 3D models listed below,
which come from the Debian package {package}.  Changes: each model was turned upright, centred,
scaled to unit size, lit and rendered.  The models' authors do not endorse them.
"""


def write_model(model: Model, out: Path, work: Path, views: int, size: int, seed: int) -> str:
    """Renders a model into its folder, complete or not at all; returns why it was not, or ''."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        source, new = Path(folder, "model"), Path(folder, "new")
        try:
            with zipfile.ZipFile(model.archive) as archive:
                beside = f"{Path(model.file).parent}/"
                archive.extractall(source, [n for n in archive.namelist() if n.startswith(beside)])
            mesh = mesh_in(source / model.file, np.reshape(model.rotation, (3, 3)))
            rng = np.random.default_rng([seed, zlib.crc32(model.slug.encode())])
            cameras = orbit_cameras(mesh.corners, views, rng)
            write_scene(Caster(mesh), cameras, size, new)
        except OSError as error:
            if error.errno:  # the disk's, not the model's
                raise
            return " ".join(str(error).split())
        except (ValueError, KeyError, IndexError, TypeError, zipfile.BadZipFile) as error:
            return " ".join(f"{type(error).__name__}: {error}".split())[:160]
        new.rename(out / model.slug)
    return ""


def write_scene(caster: Caster, cameras: list[np.ndarray], size: int, folder: Path):
    """Writes what the cameras see of a mesh in nerfstudio's layout."""
    for name in ("images", "depth"):
        (folder / name).mkdir(parents=True)
    frames = []
    for number, camera in enumerate(cameras):
        image, depth = caster.view(camera, size)
        file, depth_file = f"images/{number:03}.png", f"depth/{number:03}.png"
        Image.fromarray(image).save(folder / file)
        units = (depth / DEPTH_UNIT).round().astype(np.uint16)
        Image.fromarray(units).save(folder / depth_file)
        matrix = camera.tolist()
        frames += [{"file_path": file, "depth_file_path": depth_file, "transform_matrix": matrix}]
    focal = FOCAL * size
    transforms = {"camera_model": "OPENCV", "w": size, "h": size, "fl_x": focal, "fl_y": focal}
    transforms |= {"cx": size / 2, "cy": size / 2, "depth_unit_scale_factor": DEPTH_UNIT}
    written = json.dumps(transforms | {"frames": frames}, indent=1)
    (folder / "transforms.json").write_text(written, encoding="utf-8")


def archives_in(package: Path, folder: Path) -> list[Path]:
    """The catalogs of a Debian package, unpacked into a folder."""
    if not (dpkg := shutil.which("dpkg-deb")):
        raise SystemExit("dpkg-deb is missing; install the package dpkg, then run this again.")
    run = subprocess.run([dpkg, "-x", package, folder], capture_output=True, text=True)
    archives = sorted(folder.rglob("*.sh3f"))
    if run.returncode or not archives:
        raise SystemExit(f"{package} is not the Debian package {PACKAGE}; fetch it again.")
    return archives


def fetched(folder: Path) -> Path:
    """The Debian package, brought by the system's client into a folder."""
    if not (apt := shutil.which("apt-get")):
        way = f"fetch {PACKAGE} elsewhere and name it with --package FILE.deb"
        raise SystemExit(f"apt-get is missing; {way}.")
    run = subprocess.run([apt, "download", PACKAGE], cwd=folder, capture_output=True, text=True)
    if run.returncode == 0 and (files := list(folder.glob("*.deb"))):
        return files[0]
    errors = [line for line in run.stderr.splitlines() if line.startswith("E:")]
    why = f" ({errors[0].strip()[:120]})" if errors else ""
    raise SystemExit(
        f"Could not fetch {PACKAGE}{why}; run `apt-get update`, or give --package FILE.deb."
    )


def results(tasks: functools.partial, models: list[Model], workers: int) -> Iterator[str]:
    """What the task returns for each model, in order."""
    if workers == 1:
        yield from map(tasks, models)
        return
    executor = concurrent.futures.ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),  # the parent's to answer
    )
    try:
        yield from executor.map(tasks, models)
    finally:
        executor.shutdown(cancel_futures=True)


def credits(package: str, models: list[Model]) -> str:
    """Attributions: what was changed, the catalogs' own notes, and who made each model."""
    parts = [HEADER.format(package=package)]
    for archive in sorted({model.archive for model in models}):
        with zipfile.ZipFile(archive) as file:
            notes = file.read("LICENSE.TXT").decode("utf-8", errors="replace")
        parts.append(f"--- {archive.stem} ---\n\n{notes.strip()}\n")
    made = [f'{m.slug}: "{m.name}" by {m.author}, {m.license}, {m.url}' for m in models]
    return "\n".join([*parts, "--- Models ---\n", *made, ""])


def write_whole(file: Path, text: str, work: Path) -> None:
    """Writes a file that is complete or absent."""
    (work / file.name).write_text(text, encoding="utf-8")
    (work / file.name).rename(file)


def settings_of(out: Path, settings: dict[str, int]) -> dict[str, int]:
    """What a folder says of itself, {} if it is new; refuses what other settings or hands wrote."""
    present = {path.name for path in out.iterdir()} if out.exists() else set()
    if not present:
        return {}
    if SETTINGS not in present:
        raise SystemExit(f"{out} holds other files ({min(present)}); choose another --out.")
    before = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    for name, value in settings.items():
        if before[name] != value:
            way = f"give --{name} {before[name]} or choose another --out"
            raise SystemExit(
                f"{out} was rendered with --{name} {before[name]}, not {value}; {way}."
            )
    return before


def render(out: Path, given: argparse.Namespace, settings: dict[str, int], work: Path) -> str:
    """Renders what is missing; returns a line that says what there is."""
    package = given.package.expanduser() if given.package else None
    with Progress(
        "{task.description}", BarColumn(), MofNCompleteColumn(), console=Console(stderr=True)
    ) as progress:
        task = progress.add_task("Fetching", total=None)
        package = package or fetched(work)
        archives = archives_in(package, work / "package")
        models = sorted(m for archive in archives for m in models_in(archive))
        total = len(models)
        random.Random(settings["seed"]).shuffle(models)
        models = models[: given.models]
        out.mkdir(parents=True, exist_ok=True)
        if not (out / SETTINGS).exists():
            write_whole(out / SETTINGS, json.dumps(settings | {"tried": 0, "of": total}), work)
        waiting = [model for model in models if not (out / model.slug).exists()]
        done = len(models) - len(waiting)
        progress.update(task, description="Rendering", total=len(models), completed=done)
        write = functools.partial(write_model, out=out, work=work, **settings)
        with contextlib.closing(results(write, waiting, given.workers)) as reasons:
            for model, reason in zip(waiting, reasons, strict=True):
                if reason:
                    progress.console.print(f"Skipped {model.slug}: {reason}", markup=False)
                progress.advance(task)
    kept = sorted(model for model in models if (out / model.slug).exists())
    lines = [
        {"file_name": m.slug, "text": caption(m), "author": m.author, "license": m.license}
        for m in kept
    ]
    listing = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_whole(out / CREDITS, credits(package.stem, kept), work)
    write_whole(out / LISTING, listing, work)
    write_whole(out / SETTINGS, json.dumps(settings | {"tried": len(models), "of": total}), work)
    skipped = f"; {len(models) - len(kept)} were skipped" if len(kept) < len(models) else ""
    return f"{len(kept)} models, {settings['views']} views each, are in {given.out}{skipped}."


def positive(text: str) -> int:
    """A whole number above 0."""
    if (value := int(text)) < 1:
        raise ValueError
    return value


def main(arguments: list[str] | None = None) -> None:
    """Renders the models that are not in the folder yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", required=True, type=Path, help="the folder to write")
    parser.add_argument("--models", type=positive, help="this many instead of all, well mixed")
    parser.add_argument("--views", type=positive, default=8, help="of each model")
    parser.add_argument("--size", type=positive, default=256, help="pixels along a side")
    parser.add_argument("--seed", type=int, default=0, help="of the cameras and the mixing")
    parser.add_argument("--workers", type=positive, default=1, help="processes")
    parser.add_argument("--package", type=Path, help=f"the Debian package {PACKAGE}, a .deb file")
    parser.error = lambda message: parser.exit(2, f"{message}; --help lists the options.\n")
    given = parser.parse_args(arguments)
    try:
        out = given.out.expanduser().resolve()
        settings = {"views": given.views, "size": given.size, "seed": given.seed}
        if before := settings_of(out, settings):
            wanted = min(given.models or before["of"], before["of"])
            if before["tried"] >= wanted:
                print(f"{before['tried']} models were rendered into {given.out} already.")
                return
        lacking = [n for n in ("trimesh", "embreex") if not importlib.util.find_spec(n)]
        if lacking:
            way = "run `pip install -e .[render3d]`, then this again"
            raise SystemExit(f"{' and '.join(lacking)} cannot be imported; {way}.")
        beside = next(parent for parent in out.parents if parent.exists())
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=beside) as work:
            said = render(out, given, settings, Path(work))
    except KeyboardInterrupt:
        parser.exit(130, "Interrupted; finished models stay, the same command goes on.\n")
    except (OSError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        parser.exit(1, f"{given.out} was not completed: {' '.join(str(error).split())}\n")
    print(said)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    main(sys.argv[1:])
