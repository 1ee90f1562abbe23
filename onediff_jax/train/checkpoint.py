"""Checkpoints: the newest complete one wins, and each holds all that sampling and resuming need.

WORKDIR/checkpoints/STEP/state    step, params, ema, moments, frozen: what is not trained (Orbax,
                                  asynchronous, sharded)
                         assets   codec, vocabulary and fingerprints, as arrays
                         config   the run's configuration, as JSON

Parameters that a run neither drew nor trains are not among them: they stay where `tune.start` says,
and those of released networks in the folders that the configuration names.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from onediff_jax.data.records import SourceSettings
from onediff_jax.data.sources.cache import flat
from onediff_jax.errors import InputError
from onediff_jax.paths import absolute, access_advice, folder_is_there, under
from onediff_jax.settings import Binding
from onediff_jax.train.assets import Assets
from onediff_jax.train.config import CheckpointConfig, RunConfig, as_dict, bindings, resolve_paths
from onediff_jax.train.encoders import INNER
from onediff_jax.train.state import State
from onediff_jax.train.tune import WEIGHT_KINDS

FOLDER = "checkpoints"
UNTRAINED = "frozen"  # the name on disk of `State.untrained`
CHUNK_BYTES = 1 << 26  # bytes of an array that are packed and written at once


class Checkpoints:
    """A workdir's checkpoints, for a `with` statement whose end waits for what is being written."""

    def __init__(self, workdir: pathlib.PurePath, config: CheckpointConfig):
        options = ocp.CheckpointManagerOptions(max_to_keep=config.keep, create=True)
        self._manager = ocp.CheckpointManager(absolute(workdir) / FOLDER, options=options)

    def save(self, step: int, state: State, assets: Assets, config: RunConfig) -> None:
        """Starts writing the state after `step` steps; returns once it may be overwritten."""
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_saved(state, config)),
                assets=ocp.args.StandardSave(assets.arrays),
                config=ocp.args.JsonSave(as_dict(config)),
            ),
        )

    def changes(self, step: int, config: RunConfig) -> dict[str, tuple[Any, Any]]:
        """Settings that differ from those of a checkpoint: what they were, what they are.

        Raises InputError where they change what the saved numbers mean.
        """
        saved = self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
        for name, (before, now) in binding_changes(saved.config, config).items():
            raise InputError(
                f"config.{name} is {now!r}, and {before!r} in the checkpoint at step {step}; "
                "set it back or use another workdir."
            )
        return all_changes(saved.config, config)

    def restore(self, step: int, shapes: State, config: RunConfig) -> State:
        """The state after `step` steps, in the shapes, types and shardings of `shapes`."""
        target = ocp.args.StandardRestore(_saved(shapes, config))
        found = self._manager.restore(step, args=ocp.args.Composite(state=target)).state
        untrained = found.pop(UNTRAINED, None)
        if untrained is None:
            tune = resolve_paths(config).tune
            untrained = weights(tune.start, shapes.untrained, tune.weights, config.root)
        return State(**found, untrained=untrained)

    def finish(self) -> None:
        """Returns once everything is written."""
        self._manager.wait_until_finished()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.finish()
        self._manager.close()


def all_changes(before: Mapping[str, Any], config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that differ from those of a checkpoint: what they were, what they are.

    A setting that `before` does not know, since it is younger, was as its default is.
    """
    defaults = as_dict(RunConfig())
    defaults["data"]["sources"] = dict.fromkeys(config.data.sources, as_dict(SourceSettings()))
    defaults, before, now = (
        flat(json.loads(json.dumps(values))) for values in (defaults, before, as_dict(config))
    )
    before = {name: value for name, value in defaults.items() if name in now} | before
    names = [name for name in before | now if before.get(name) != now.get(name)]
    return {name: (before.get(name), now.get(name)) for name in names}


def binding_changes(
    before: Mapping[str, Any], config: RunConfig, binds: Binding = "state"
) -> dict[str, tuple[Any, Any]]:
    """Settings that differ and bind: those of a state that is resumed, or of weights alone."""
    bound = {name for name, each in bindings().items() if each in ("weights", binds)}
    found = {n: change for n, change in all_changes(before, config).items() if n in bound}
    if all(found.get("optimizer.ema", ())):
        found.pop("optimizer.ema", None)  # another decay of the same EMA
    return found


def newest_step(workdir: pathlib.PurePath) -> int | None:
    """The step of a workdir's newest complete checkpoint; None where there is none."""
    folder = newest_folder(workdir)
    return folder and int(folder.name)


def step_folder(path: pathlib.PurePath | str) -> epath.Path:
    """The folder of one step: `path` itself, or the newest complete one of a workdir.

    Raises InputError, naming `path`, where there is none.
    """
    folder = newest_folder(path)
    if folder is None:
        raise InputError(
            f"{path} holds no checkpoint; give a workdir that `train` has saved in, or one of its "
            f"{FOLDER}/STEP folders.{access_advice(path)}"
        )
    return folder


def newest_folder(path: pathlib.PurePath | str) -> epath.Path | None:
    """The same, or None; raises InputError where object storage refuses to answer."""
    given = absolute(path)
    if folder_is_there(given) and is_complete(given):
        return given
    parent = given / FOLDER if (given / FOLDER).is_dir() else given
    steps = [folder for folder in parent.glob("*") if folder.name.isdigit() and is_complete(folder)]
    return max(steps, key=lambda folder: int(folder.name), default=None)


def is_complete(folder: epath.Path) -> bool:
    """Whether a folder holds a step that was saved to its end."""
    # Object storage cannot rename: there the last thing written says that it is the last.
    return (folder / "state").is_dir() and ocp.utils.is_checkpoint_finalized(folder)


class SavedRun(NamedTuple):
    """What a checkpoint says of its run."""

    config: dict[str, Any]  # as it was written, by the version of that day
    assets: Assets
    step: int


def saved_run(path: pathlib.PurePath | str) -> SavedRun:
    """Configuration, assets and step of a checkpoint.

    Released networks beside the checkpoints, where an import leaves them, are the configuration's,
    wherever the folder is now.  Raises InputError, naming `path`, where there is no checkpoint or
    not one of ours.
    """
    folder = step_folder(path)
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    names = ocp.args.Composite(config=ocp.args.JsonRestore(), assets=ocp.args.StandardRestore())
    try:
        held = checkpointer.restore(folder, args=names)
        config, assets, step = held.config, Assets.from_arrays(held.assets), int(folder.name)
    except (FileNotFoundError, KeyError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise InputError(
            f"{folder} is not a complete checkpoint of this project: {first}"
        ) from error
    workdir = folder.parents[1]
    for part, network in INNER.items():
        if assets.fingerprints.get(part) and (workdir / network).is_dir():
            config[part]["path"] = str(workdir)
    return SavedRun(config, assets, step)


class SavedArray(NamedTuple):
    """The file, shape and type of a parameter in a checkpoint."""

    name: str
    folder: pathlib.PurePath  # of a step
    part: str  # of its state
    shape: tuple[int, ...]
    dtype: np.dtype


def saved_arrays(
    path: pathlib.PurePath | str, names: Iterable[str], kind: str = "ema", root: str = ""
) -> dict[str, SavedArray]:
    """Where a checkpoint's parameters (`kind`: ema or params) of these names are.

    Where there is no EMA, as without one in training, the parameters serve, and where only an EMA
    is, as in an import, it does.  What the checkpoint's run did not train is in the checkpoint that
    it started from (`root` stands for its own, where that has moved).  Raises InputError listing
    the parameters that are nowhere.
    """
    names, found, seen = list(names), {}, []
    while missing := [name for name in names if name not in found]:
        folder = step_folder(path)
        config, _, _ = saved_run(folder)
        seen.append(str(folder))
        state = _state(folder)
        held = next((each for each in (kind, *WEIGHT_KINDS) if state.get(each)), kind)
        for part in (held, UNTRAINED):
            there = flatten_dict(state.get(part) or {}, sep="/")
            found |= {
                name: SavedArray(name, folder, part, tuple(there[name].shape), there[name].dtype)
                for name in missing
                if name in there
            }
        tune = config.get("tune", {})
        if not (path := under(root or config.get("root", ""), tune.get("start", ""))):
            break
        kind = tune["weights"]
    if missing := sorted(set(names) - set(found)):
        raise InputError(
            f"{' and '.join(seen)} lack {len(missing)} parameters of this model: "
            f"{', '.join(missing[:8])}{' ...' if missing[8:] else ''}."
        )
    return found


def kinds_in(path: pathlib.PurePath) -> tuple[str, ...]:
    """The kinds of weights that a checkpoint holds: of ema and params."""
    state = _state(step_folder(path))
    return tuple(kind for kind in WEIGHT_KINDS if state.get(kind))


def weights(path: pathlib.PurePath | str, shapes: Any, kind: str = "ema", root: str = "") -> Any:
    """The parameters of a checkpoint (`kind`: ema or params), of the names of `shapes`.

    In the types, and where they have them the shardings, of `shapes`; `saved_arrays` finds them.
    Raises InputError listing the parameters that are nowhere, and those of another shape.
    """
    wanted = flatten_dict(shapes, sep="/")
    there = saved_arrays(path, wanted, kind, root)
    if other := [name for name, place in there.items() if place.shape != wanted[name].shape]:
        raise InputError(
            f"{there[other[0]].folder}: {other[0]} has the shape {there[other[0]].shape}, and this "
            f"model's {wanted[other[0]].shape}"
            + (f"; so do {len(other) - 1} more." if other[1:] else ".")
        )
    by_part: dict[tuple[pathlib.PurePath, str], dict[str, Any]] = {}
    for name, place in there.items():
        by_part.setdefault((place.folder, place.part), {})[name] = wanted[name]
    parts = [_read(folder, part, mine) for (folder, part), mine in by_part.items()]
    return unflatten_dict({name: x for part in parts for name, x in part.items()}, sep="/")


def read_array(place: SavedArray) -> np.ndarray:
    """A parameter, as it is saved."""
    shape = jax.ShapeDtypeStruct(place.shape, place.dtype)
    return np.asarray(_read(place.folder, place.part, {place.name: shape})[place.name])


def save_weights(
    folder: pathlib.PurePath, params: Mapping, assets: Assets, config: RunConfig
) -> None:
    """Writes a checkpoint of weights alone, to start from: `folder` is that of its step.

    Unlike in `Checkpoints.save`, NumPy arrays are not copied: memory hardly grows.
    """
    kinds = ocp.type_handlers
    registry = kinds.create_type_handler_registry(
        (np.ndarray, kinds.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, kinds.ArrayHandler()),
    )
    # What goes to one file for all arrays (OCDBT) is gathered in memory, and so is a whole array.
    state = ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=registry)
    chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), params)
    handlers = ocp.CompositeCheckpointHandler(
        state=state,
        assets=ocp.StandardCheckpointHandler(),
        config=ocp.JsonCheckpointHandler(),
    )
    ocp.Checkpointer(handlers).save(
        absolute(folder),
        args=ocp.args.Composite(
            state=ocp.args.PyTreeSave({"ema": params}, save_args={"ema": chunks}),
            assets=ocp.args.StandardSave(assets.arrays),
            config=ocp.args.JsonSave(as_dict(config)),
        ),
    )


def _state(folder: pathlib.PurePath) -> dict[str, Any]:
    """Orbax's metadata of the arrays of a saved state."""
    return ocp.PyTreeCheckpointHandler().metadata(absolute(folder / "state")).tree


def _read(folder: pathlib.PurePath, part: str, shapes: dict[str, Any]) -> dict[str, Any]:
    """Parameters in a part of the saved state, by name."""
    target = {part: unflatten_dict(shapes, sep="/")}
    restore = ocp.args.PyTreeRestore(
        target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
    )
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    found = checkpointer.restore(absolute(folder / "state"), args=restore)
    return flatten_dict(found[part], sep="/")


def _saved(state: State, config: RunConfig) -> dict[str, Any]:
    """The parts of a state that are saved."""
    saved = state._asdict()
    untrained = saved.pop("untrained")
    return saved if config.tune.start else saved | {UNTRAINED: untrained}
