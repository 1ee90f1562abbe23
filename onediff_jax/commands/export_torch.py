"""`python -m onediff_jax export_torch`: a denoiser as a folder in the released layout."""

import dataclasses
import functools
import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save

from onediff_jax import release
from onediff_jax.commands import EXPORT_DTYPES
from onediff_jax.errors import InputError
from onediff_jax.models.layers import LORA, LoraConfig
from onediff_jax.models.nextdit import NextDiTConfig
from onediff_jax.release.configs import SCHEDULER_FILE, nextdit_json, schedule_in
from onediff_jax.release.folders import CARD, bring_pretrained, new_folder
from onediff_jax.release.mapping import released, released_shapes
from onediff_jax.release.names import adapter_names, nextdit_names
from onediff_jax.release.shapes import denoiser_shapes
from onediff_jax.release.tensors import STEMS
from onediff_jax.release.writing import TensorFolder, digests_in
from onediff_jax.train.checkpoint import SavedArray, kinds_in, read_array, saved_arrays, saved_run
from onediff_jax.train.config import RunConfig, run_config
from onediff_jax.train.tune import WEIGHT_KINDS

MODELING = Path(release.__file__).with_name("modeling_nextdit.py")
TEXT_WIDTH = "denoiser/layers/attention/wk_y/kernel"  # whose second axis has it
# Where no import says otherwise, for the released file was not found: FLUX.1's values, which the
# released pipeline's own formula for the shift has as its defaults, and the paper's shift for
# whoever turns the dynamic one off.
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.30.3",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}


def run(options: flags.FlagValues) -> None:
    """Exports the denoiser, without an accelerator."""
    jax.config.update("jax_platforms", "cpu")
    line = export_torch(
        epath.Path(options.checkpoint),
        Path(options.out),
        options.ema,
        options.dtype,
        options.shard_gb,
        Path(options.frozen) if options.frozen else None,
        options.link,
        options.adapters,
        options.force,
        options.root,
    )
    print(line)


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A checkpoint's denoiser, where its parameters are, and what its run knows of it."""

    run: RunConfig
    origin: Mapping[str, Any]  # what came with weights that were imported; else empty
    kind: str  # of weights: params or ema
    step: int
    settings: str  # the run's, as JSON
    shapes: Mapping[str, Any]  # of its parameters without adapters
    arrays: Mapping[str, SavedArray]  # of all its parameters

    @property
    def model(self) -> NextDiTConfig:
        """Its shape without adapters."""
        return dataclasses.replace(self.run.model, lora=LoraConfig())

    @property
    def adapters(self) -> dict[str, SavedArray]:
        """Those of its parameters that are adapters."""
        return {n: place for n, place in self.arrays.items() if n.rsplit("/", 1)[1] in LORA}

    @property
    def dtype(self) -> np.dtype:
        """The narrowest type that holds what is stored."""
        return np.dtype(
            functools.reduce(jnp.promote_types, {p.dtype for p in self.arrays.values()})
        )

    def merged(self, name: str) -> np.ndarray:
        """A parameter; a matrix together with its adapter, in float32 (arXiv 2106.09685, eq. 3)."""
        parameter, matrix = read_array(self.arrays[name]), name.rsplit("/", 1)[0]
        down, up = (f"{matrix}/{part}" for part in LORA)
        if not name.endswith("/kernel") or down not in self.arrays:
            return parameter
        lora = self.run.model.lora
        product = np.float32(read_array(self.arrays[down])) @ np.float32(
            read_array(self.arrays[up])
        )
        product *= lora.alpha / lora.rank
        return np.add(parameter, product, out=product)


def denoiser_at(checkpoint: PurePath, ema: bool, root: str = "") -> Denoiser:
    """The denoiser of a workdir's newest checkpoint, or of a step's folder.

    `root` is where relative paths of its run begin now, if not at its own.
    """
    settings, assets, step = saved_run(checkpoint)
    run, origin = run_config(settings), json.loads(assets.origin or "{}")
    kinds = WEIGHT_KINDS if ema else WEIGHT_KINDS[::-1]
    kind = next(kind for kind in kinds if kind in kinds_in(checkpoint))
    _, text_width, _ = saved_arrays(checkpoint, [TEXT_WIDTH], kind, root)[TEXT_WIDTH].shape
    model = dataclasses.replace(run.model, lora=LoraConfig())
    shapes = denoiser_shapes(model, text_width)
    names = [f"denoiser/{name}" for name in flatten_dict(shapes, sep="/")]
    adapted = [name for name in names if run.model.lora.adapts(name.split("/")[-2])]
    names += [name.replace("kernel", part) for name in adapted for part in LORA]
    found = saved_arrays(checkpoint, names, kind, root)
    return Denoiser(run, origin, kind, step, json.dumps(settings, sort_keys=True), shapes, found)


def export_torch(
    checkpoint: PurePath,
    out: Path,
    ema: bool,
    dtype: str | None,
    shard_gb: float,
    frozen: Path | None,
    link: bool,
    adapters: bool,
    force: bool,
    root: str = "",
) -> str:
    """Writes `out`; returns what was done, in a line."""
    denoiser = denoiser_at(checkpoint, ema, root)
    kind = np.dtype(jnp.dtype(EXPORT_DTYPES.get(dtype, dtype))) if dtype else denoiser.dtype
    if adapters:
        refuse_more_than_adapters(denoiser, checkpoint)
    if frozen and not frozen.is_dir():
        raise InputError(f"--frozen is {frozen}, which is no folder.")
    with new_folder(out, force) as folder:
        if adapters:
            write_adapters(denoiser, folder, kind)
        else:
            write_transformer(denoiser, folder / "transformer", kind, int(shard_gb * 1e9))
            if frozen:
                bring_pretrained(frozen, folder, link, but=("scheduler",))
            values = denoiser.origin.get("scheduler") or scheduler_in(frozen) or SCHEDULER
            write_json(folder / "scheduler" / SCHEDULER_FILE, values)
        (folder / CARD).write_text(card_of(denoiser, kind))
        manifest = {
            "step": denoiser.step,
            "weights": denoiser.kind,
            "dtype": str(kind),
            "config_sha256": hashlib.sha256(denoiser.settings.encode()).hexdigest(),
            "licence": denoiser.origin.get("licence"),
            "sha256": digests_in(folder),
        }
        write_json(folder / "manifest.json", manifest)
    what = "adapters" if adapters else "transformer"
    return (
        f"{out}: {what} of step {denoiser.step}, {denoiser.kind}, {kind}; licence of the weights: "
        f"{denoiser.origin.get('licence', 'yours to choose')}"
    )


def write_transformer(denoiser: Denoiser, folder: Path, dtype: np.dtype, shard: int) -> None:
    """Weights, configuration and code of a folder `transformer`."""
    folder.mkdir()
    names = nextdit_names(denoiser.model)
    shapes = released_shapes(denoiser.shapes, names)
    in_order = {name: shapes[name] for name in sorted(shapes, key=numbered)}
    with TensorFolder(folder, in_order, dtype, STEMS[0], shard) as file:
        for name in flatten_dict(denoiser.shapes, sep="/"):
            parameter = unflatten_dict({name: denoiser.merged(f"denoiser/{name}")}, sep="/")
            for tensor, values in released(parameter, names).items():
                file.write(tensor, values)
    write_json(folder / "config.json", config_of(denoiser))
    shutil.copyfile(MODELING, folder / MODELING.name)


def scheduler_in(frozen: Path | None) -> Mapping[str, Any] | None:
    """The scheduler's settings in a folder with parts that are never trained, if it has one."""
    if not frozen or not (frozen / "scheduler").is_dir():
        return None
    return schedule_in(frozen / "scheduler")[1]


def numbered(name: str) -> list[tuple[bool, int | str]]:
    """What sorts names so that layer 10 comes after layer 9."""
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in name.split(".")]


def config_of(denoiser: Denoiser) -> dict[str, Any]:
    """What config.json says: keys that do not follow from the model are the imported file's.

    Those of the EMA are the run's, once it has trained.
    """
    run = denoiser.run
    side = run.model.patch * math.isqrt(max(slot.tokens for slot in run.data.row))
    kept = {"input_size": [1, side, side], "model_max_length": run.text.length}
    kept |= denoiser.origin.get("config", {})
    if denoiser.step or "decay" not in kept:
        kept |= {"decay": run.optimizer.ema, "optimization_step": denoiser.step}
    _, text_width, _ = denoiser.arrays[TEXT_WIDTH].shape
    return nextdit_json(denoiser.model, text_width, kept)


def refuse_more_than_adapters(denoiser: Denoiser, checkpoint: PurePath) -> None:
    """Raises InputError where adapters are not all that the run trained of the denoiser."""
    if not denoiser.adapters:
        raise InputError(f"{checkpoint} has no adapters (model.lora.rank is 0); omit --adapters.")
    trained = {(place.folder, place.part) for place in denoiser.adapters.values()}
    others = [
        name
        for name, place in denoiser.arrays.items()
        if (place.folder, place.part) in trained and name not in denoiser.adapters
    ]
    if others:
        raise InputError(
            f"{checkpoint} trained more than adapters, such as {others[0]}; omit --adapters, and "
            "all is merged."
        )


def write_adapters(denoiser: Denoiser, folder: Path, dtype: np.dtype) -> None:
    """Adapters alone, as PEFT and as diffusers keep them.

    Diffusers takes alpha to be the rank where a file does not say, so there the scale is in B.
    """
    lora, names = denoiser.run.model.lora, adapter_names(denoiser.model)
    params = {
        name.removeprefix("denoiser/"): np.float32(read_array(place))
        for name, place in denoiser.adapters.items()
    }
    tensors = released(unflatten_dict(params, sep="/"), names)
    scale = np.float32(lora.alpha / lora.rank)
    scaled = {n: scale * t if "lora_B" in n else t for n, t in tensors.items()}
    settings = {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": sorted(lora.targets),
        "lora_dropout": 0.0,
        "bias": "none",
    }
    of_peft = {"peft_type": "LORA", "task_type": None, "base_model_name_or_path": None}
    write_json(folder / "adapter_config.json", of_peft | settings | {"inference_mode": True})
    of_diffusers = {f"transformer.{k}": v for k, v in settings.items()}
    of_diffusers["transformer.lora_alpha"] = lora.rank
    for file, prefix, values, metadata in (
        ("adapter_model", "base_model.model.", tensors, {}),
        (
            "pytorch_lora_weights",
            "transformer.",
            scaled,
            {"lora_adapter_metadata": json.dumps(of_diffusers, sort_keys=True)},
        ),
    ):
        values = {prefix + n: np.ascontiguousarray(t, dtype) for n, t in values.items()}
        data = save(values, {"format": "pt"} | metadata)
        (folder / f"{file}.safetensors").write_bytes(data)


def card_of(denoiser: Denoiser, dtype: np.dtype) -> str:
    """The model card: what the folder is, how it is used, and whose licence holds."""
    licence = denoiser.origin.get("licence")
    kind = {"params": "as trained", "ema": "EMA"}[denoiser.kind]
    if licence is None:
        rights = "The weights began at random: their licence is their owner's to choose."
    elif licence == "unknown":
        rights = "The weights began with others whose licence is not known: ask before passing on."
    else:
        rights = f"The weights began with others under {licence}, which holds for these too."
    head = f"---\nlicense: {licence}\n---\n" if licence not in (None, "unknown") else ""
    return f"""{head}# Weights of a Next-DiT in the layout of OneDiffusion's release

Step {denoiser.step:,} of a run of onediff_jax ({kind}, {dtype}). {rights}
The code in transformer/modeling_nextdit.py is under Apache-2.0; it needs torch and safetensors:

    import sys; sys.path.append("transformer")
    from modeling_nextdit import NextDiT
    model = NextDiT.from_pretrained(".")

manifest.json has the SHA-256 of every file.
"""


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """A readable JSON file, in a folder that may be new."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(values, indent=2) + "\n")
