"""Checkpoints: the newest complete one wins, and each holds all that sampling and resuming need.

WORKDIR/checkpoints/STEP/state    step, params, ema, moments (Orbax, asynchronous, sharded)
                         assets   codec and vocabulary, as arrays
                         config   the run's configuration, as JSON
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from onediff_jax.data.latents import LinearCodec
from onediff_jax.errors import InputError
from onediff_jax.train.run import Assets, CheckpointConfig
from onediff_jax.train.state import State

FOLDER = "checkpoints"
# Settings that say what saved numbers mean, and those among them that do not.
BINDING = ("model.", "text.", "codec.")
FREE = (".attention", ".unroll", ".dtype")


class Checkpoints:
    """A workdir's checkpoints, for a `with` statement whose end waits for what is being written."""

    def __init__(self, workdir: pathlib.Path, config: CheckpointConfig):
        options = ocp.CheckpointManagerOptions(max_to_keep=config.keep, create=True)
        self._manager = ocp.CheckpointManager((workdir / FOLDER).resolve(), options=options)

    @property
    def newest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: State, assets: Assets, config: dict[str, Any]) -> None:
        """Starts writing the state after `step` steps; returns once it may be overwritten."""
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state._asdict()),
                assets=ocp.args.StandardSave(arrays_of(assets)),
                config=ocp.args.JsonSave(config),
            ),
        )

    def assets(self, step: int) -> Assets:
        """The assets that the checkpoint of `step` steps holds."""
        target = ocp.args.Composite(assets=ocp.args.StandardRestore())
        return assets_of(self._manager.restore(step, args=target).assets)

    def changes(self, step: int, config: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Settings that differ from those of a checkpoint: what they were, what they are.

        Raises InputError where they change what the saved numbers mean.
        """
        saved = self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
        before, now = flat(saved.config), flat(json.loads(json.dumps(config)))
        names = [name for name in before | now if before.get(name) != now.get(name)]
        changed = {name: (before.get(name), now.get(name)) for name in names}
        for name in names:
            if name.startswith(BINDING) and not name.endswith(FREE):
                raise InputError(
                    f"config.{name} is {changed[name][1]!r}, and {changed[name][0]!r} in the "
                    f"checkpoint at step {step}; set it back or use another workdir."
                )
        return changed

    def restore(self, step: int, shapes: State) -> State:
        """The state after `step` steps, in the shapes, types and shardings of `shapes`."""
        target = ocp.args.StandardRestore(shapes._asdict())
        return State(**self._manager.restore(step, args=ocp.args.Composite(state=target)).state)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.wait_until_finished()
        self._manager.close()


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name."""
    found = {}
    for name, value in config.items():
        found |= (
            flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return found


def arrays_of(assets: Assets) -> dict[str, np.ndarray]:
    """Assets as arrays."""
    return {**assets.codec._asdict(), "vocabulary": np.frombuffer(assets.vocabulary, np.uint8)}


def assets_of(arrays: dict[str, np.ndarray]) -> Assets:
    """The inverse of `arrays_of`."""
    codec = LinearCodec(*(np.asarray(arrays[name]) for name in LinearCodec._fields))
    return Assets(codec, np.asarray(arrays["vocabulary"]).tobytes())


def newest_step(workdir: pathlib.Path) -> int | None:
    """The step of a workdir's newest complete checkpoint; None where there is none."""
    try:
        return int(step_folder(workdir).name)
    except InputError:
        return None


def step_folder(path: pathlib.Path) -> pathlib.Path:
    """The folder of one step: `path` itself, or the newest complete one of a workdir.

    Raises InputError, naming `path`, where there is none.
    """
    if (path / "state").is_dir():
        return path
    parent = path / FOLDER if (path / FOLDER).is_dir() else path
    steps = [
        folder
        for folder in parent.glob("*")
        if folder.name.isdigit() and (folder / "state").is_dir()
    ]
    if not steps:
        raise InputError(
            f"{path} holds no checkpoint; give a workdir that `train` has saved in, or one of its "
            f"{FOLDER}/STEP folders."
        )
    return max(steps, key=lambda folder: int(folder.name))


def read(
    path: pathlib.Path, shapes: Callable[[dict[str, Any], Assets], Any]
) -> tuple[dict, Assets, Any, int]:
    """Configuration, assets, moving average and step of a checkpoint, for sampling.

    `shapes(config, assets)` gives the parameters' shapes, and may raise where the configuration is
    not one of ours.
    """
    folder = step_folder(path)
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    names = ocp.args.Composite(config=ocp.args.JsonRestore(), assets=ocp.args.StandardRestore())
    try:
        held = checkpointer.restore(folder.resolve(), args=names)
        config, assets = held.config, assets_of(held.assets)
    except (FileNotFoundError, KeyError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise InputError(
            f"{folder} is not a complete checkpoint of this project: {first}"
        ) from error
    target = {"ema": shapes(config, assets)}
    restore = ocp.args.PyTreeRestore(
        target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
    )
    found = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(
        (folder / "state").resolve(), args=restore
    )
    return config, assets, jax.tree.map(np.asarray, found["ema"]), int(folder.name)
