"""The loss curves of runs, from their metrics.jsonl, as an image.

    python tools/docs/plot_loss.py --out docs/loss.png runs/scenes_tiny [runs/pictures_tiny ...]

Draws the loss of every task that a run logged, and the mean.  Needs matplotlib (the `demo` extra).
"""

import argparse
import json
import pathlib
import sys

from onediff_jax.errors import InputError


def curves(workdir: pathlib.Path) -> tuple[list[int], dict[str, list[float]]]:
    """Steps, and every loss at each of them (NaN where a task was not seen)."""
    file = workdir / "metrics.jsonl"
    if not file.is_file():
        raise InputError(f"{file} is missing; {workdir} is not the workdir of a training run.")
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    entries = [entry for entry in entries if "loss" in entry]
    tasks = {name for entry in entries for name in entry if name.startswith("loss/")}
    tasks = sorted(name for name in tasks if not name.startswith("loss/sigma"))
    losses = {name: [entry.get(name, float("nan")) for entry in entries] for name in tasks}
    return [entry["step"] for entry in entries], {"loss": [e["loss"] for e in entries]} | losses


def main() -> None:
    """Draws one panel a run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdirs", type=pathlib.Path, nargs="+", help="of training runs")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the image")
    options = parser.parse_args()
    try:
        import matplotlib.figure
    except ImportError:
        raise InputError("Curves need matplotlib: pip install 'onediff_jax[demo]'.") from None

    count = len(options.workdirs)
    figure = matplotlib.figure.Figure(figsize=(5 * count, 3.2), layout="constrained", dpi=110)
    panels = figure.subplots(1, count, squeeze=False)[0]
    for panel, workdir in zip(panels, options.workdirs, strict=True):
        steps, losses = curves(workdir)
        for name, values in losses.items():
            mean = name == "loss"
            label = "all tasks" if mean else name.removeprefix("loss/")
            panel.plot(steps, values, label=label, color="black" if mean else None, lw=1 + mean)
        panel.set(title=workdir.name, xlabel="step", ylabel="velocity error", yscale="log")
        panel.grid(alpha=0.3, which="both")
        panel.legend(fontsize="small")
    figure.savefig(options.out)
    print(options.out)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"plot_loss: {error}")
