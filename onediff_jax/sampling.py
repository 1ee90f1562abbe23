"""The `sample` command: files in, files out."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from PIL import Image

from onediff_jax.data.loader import DataConfig
from onediff_jax.data.pictures import SPATIAL, grid_for, picture_in, resized
from onediff_jax.data.tasks import prompt_of, task_named
from onediff_jax.errors import InputError
from onediff_jax.generate import Request, SampleConfig, generate
from onediff_jax.restore import restored


def name_and_file(text: str) -> tuple[str, pathlib.Path]:
    """View and file of a --given option."""
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise InputError(f"--given is {text!r}; it must be NAME=FILE, such as depth=room.png.")
    return name, pathlib.Path(file)


def size_of(text: str) -> tuple[int, int]:
    """Height and width of a --size option."""
    if not (found := re.fullmatch(r"(\d+)x(\d+)", text)):
        raise InputError(f"--size is {text!r}; it must be HEIGHTxWIDTH, such as 256x256.")
    return int(found[1]), int(found[2])


def tokens_of(config: DataConfig, task: str) -> int:
    """Tokens of a view of `task` in training; raises where the run was not trained on it."""
    for slot in config.row:
        if any(task in tasks for tasks in slot.tasks_of(config.tasks).values()):
            return slot.tokens
    trained = [name for name, weight in config.tasks.items() if weight > 0]
    raise InputError(
        f"--task is {task!r}, which this checkpoint was not trained on; it knows "
        f"{', '.join(trained)}."
    )


def sample_to_folder(
    checkpoint: pathlib.Path,
    task: str,
    given: Mapping[str, pathlib.Path],
    caption: str,
    out: pathlib.Path,
    *,
    seed: int,
    num: int,
    size: str | None,
    settings: Mapping[str, Any],
) -> list[pathlib.Path]:
    """The files of `num` samples of the views that are not given, one PNG a view."""
    views = task_named(task).views
    config = SampleConfig(**settings)
    if num < 1:
        raise InputError(f"--num is {num}; it must be at least 1.")
    for name in given:
        if name not in views:
            raise InputError(
                f"--given names {name!r}; the views of task {task!r} are {', '.join(views)}."
            )
    pictures = {name: picture_in(file) for name, file in given.items()}
    run, trained, step = restored(checkpoint)
    tokens = tokens_of(run.data, task)
    if size:
        height, width = size_of(size)
    else:
        shape = next(iter(pictures.values())).shape[:2] if pictures else (1, 1)
        height, width = (trained.edge * side for side in grid_for(*shape, tokens))
    fitted = {name: resized(p, height, width, SPATIAL["image"]) for name, p in pictures.items()}
    prompt = caption if caption.startswith("[[") else prompt_of(task, (), caption)
    made = generate(trained, task, [Request(prompt, fitted)] * num, (height, width), config, seed)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for number, sample in enumerate(made):
        for name, picture in sample.items():
            files.append(out / f"{task}_{name}_{seed}_{number:03d}.png")
            unfinished = files[-1].with_suffix(".part")
            Image.fromarray(picture).save(unfinished, "png")
            unfinished.rename(files[-1])
    print(
        f"{len(files)} pictures of {height} x {width} from step {step:,}: {files[0]}"
        + (" ..." if files[1:] else "")
    )
    return files
