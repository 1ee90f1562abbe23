"""The whole method in ten minutes on two CPU cores: `make demo`.

    python tools/demo.py [--workdir runs/scenes_tiny] [--seed 0]

Builds the built-in scenes, trains configs/scenes_tiny.py, samples and scores held-out scenes, and
prints a table and where the images are.  What is done is found and not done again; what was
interrupted goes on where it was.
"""

import argparse
import json
import pathlib
import runpy
import sys
import time
from collections.abc import Sequence

import rich.console
import rich.table
from absl import flags
from PIL import Image

from onediff_jax.errors import InputError, Stopped
from onediff_jax.evaluate import scenes as scene_test
from onediff_jax.evaluate.grids import grid
from onediff_jax.train.checkpoint import newest_step
from onediff_jax.train.config import run_config
from onediff_jax.train.loop import train
from onediff_jax.train.prepare import open_sources
from onediff_jax.train.restore import restore_model

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "scenes_tiny.py"
TEST = scene_test.SceneTest()
SHOWN = 6  # examples in a grid


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, scores and shows; each part only where it is not done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/scenes_tiny"))
    parser.add_argument("--seed", type=int, default=0, help="of the run; equal seeds, equal runs")
    options = parser.parse_args(arguments)
    flags.FLAGS.mark_as_parsed()  # grain reads flags of its own
    console, began = rich.console.Console(), time.time()

    settings = runpy.run_path(str(CONFIG))["get_config"]()
    settings.seed = options.seed
    config = run_config(settings)
    if newest_step(options.workdir) == config.steps:
        console.print(f"found a trained model in {options.workdir}")
    else:
        console.print(f"training {config.steps:,} steps; grids go to {options.workdir}/pictures")
        train(config, options.workdir)
    scores = scored(options.workdir, console)
    show(scores, options.workdir, console)
    console.print(f"{(time.time() - began) / 60:.1f} minutes.  Next: sample with your own words,")
    console.print(
        f"  python -m onediff_jax sample --checkpoint {options.workdir} --task text2image "
        '--prompt "a large red sphere on the left" --guidance 3 --num 4 --out samples',
        soft_wrap=True,
    )


def scored(workdir: pathlib.Path, console: rich.console.Console) -> list[dict]:
    """The lines of the table, from WORKDIR/scores.json where the model was scored before."""
    file, step = workdir / "scores.json", newest_step(workdir)
    if file.exists() and (found := json.loads(file.read_text()))["step"] == step:
        console.print(f"found its scores in {file}")
        return found["lines"]
    model = restore_model(workdir)
    sources = [
        open_sources(model.config.data, split)["scenes"] for split in ("train", "validation")
    ]
    with console.status("sampling and scoring held-out scenes ..."):
        result = scene_test.score(model.trained, *sources, TEST)
    (workdir / "pictures").mkdir(exist_ok=True)
    for (task, wanted), completed in result.completed.items():
        sheet = Image.fromarray(grid(completed[:SHOWN]))
        sheet.save(workdir / "pictures" / f"held_out_{task}_to_{wanted}.png")
    lines = [line._asdict() for line in result.lines]
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps({"step": step, "lines": lines}, indent=1))
    unfinished.rename(file)
    return lines


def show(lines: list[dict], workdir: pathlib.Path, console: rich.console.Console) -> None:
    """Prints the table and the images' paths."""
    table = rich.table.Table(title="held-out scenes")
    for name in ("score", "model", "trivial", "trivial answer"):
        table.add_column(name, justify="right" if name in ("model", "trivial") else "left")
    for line in lines:
        digits = 1 if "PSNR" in line["name"] else 3
        arrow = "higher is better" if line["higher"] else "lower is better"
        numbers = (f"{line[which]:.{digits}f}" for which in ("model", "trivial"))
        table.add_row(f"{line['name']} ({arrow})", *numbers, line["answer"])
    console.print(table)
    for image in sorted((workdir / "pictures").glob("held_out_*.png")):
        console.print(f"  {image}", soft_wrap=True)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"demo: {error}")
    except (KeyboardInterrupt, Stopped):
        sys.exit("demo: interrupted; the same command goes on from the last checkpoint.")
