"""What a released folder's config.json says of its network, in our settings.

Every key that changes what is computed is read or, where we compute one thing only, compared;
InputError names file, key, what was expected and what was found.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from onediff_jax.errors import InputError
from onediff_jax.models.nextdit import NextDiTConfig
from onediff_jax.models.t5 import T5Config
from onediff_jax.models.vae import VAEConfig
from onediff_jax.ops.solve import Schedule
from onediff_jax.release.tensors import json_in

FILE = "config.json"
SCHEDULER_FILE = "scheduler_config.json"
SCHEDULER_CLASS = "FlowMatchEulerDiscreteScheduler"
NO_DEFAULT = object()

# Keys of the released config.json that say nothing about what is computed, or what we always do.
NEXTDIT_CONSTANTS = {
    "_class_name": "NextDiT",
    "_diffusers_version": "0.30.3",
    "ffn_dim_multiplier": None,
    "input_size": [1, 96, 96],  # of the latents that the released pipeline makes by default
    "inv_gamma": 1.0,
    "min_decay": 0.0,
    "model_max_length": 512,
    "norm_type": "rms",
    "param_dtype": "float32",
    "power": 2 / 3,
    "pred_sigma": False,
    "qk_norm": True,
    "remat_attention": "",
    "remat_block": "",
    "remat_mlp": "",
    "rotary_max_length": 128,
    "rotary_max_length_t": None,
    "update_after_step": 0,
    "use_ema_warmup": False,
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """A configuration as a file holds it, read key by key."""

    file: pathlib.Path
    values: dict[str, Any]

    def get(self, key: str, default: Any = NO_DEFAULT) -> Any:
        """A key's value."""
        if key not in self.values and default is NO_DEFAULT:
            raise InputError(f"{self.file}: {key}: expected a value, found none.")
        return self.values.get(key, default)

    def same(self, key: str, *expected: Any, default: Any = NO_DEFAULT) -> None:
        """Raises where a key's value is none of those expected."""
        value = self.get(key, default)
        if value not in expected:
            wanted = " or ".join(map(repr, expected))
            raise InputError(f"{self.file}: {key}: expected {wanted}, found {value!r}.")

    def number(self, key: str, default: Any = NO_DEFAULT, kind: type[int | float] = int) -> Any:
        """A positive number."""
        value = self.get(key, default)
        if not isinstance(value, (int, kind)) or isinstance(value, bool) or not value > 0:
            raise InputError(f"{self.file}: {key}: expected a positive number, found {value!r}.")
        return kind(value)

    def numbers(self, key: str) -> tuple[int, ...]:
        """Positive integers."""
        value = self.get(key)
        if not isinstance(value, list) or not all(type(n) is int and n > 0 for n in value):
            raise InputError(f"{self.file}: {key}: expected positive integers, found {value!r}.")
        return tuple(value)

    def flag(self, key: str, default: Any = NO_DEFAULT) -> bool:
        """True or false."""
        self.same(key, True, False, default=default)
        return bool(self.get(key, default))

    def built(self, kind: type, **values: Any) -> Any:
        """Our settings of these values; what they refuse is told with the file's name."""
        try:
            return kind(**values)
        except InputError as error:
            raise InputError(f"{self.file}: {error}") from error


def settings_in(folder: pathlib.Path, key: str, *expected: str, file: str = FILE) -> Settings:
    """The configuration of a folder whose `key` names the kind of network that is expected."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; expected one with {file}.")
    settings = Settings(folder / file, json_in(folder / file))
    settings.same(key, *expected, default=None)
    return settings


def nextdit_config(folder: pathlib.Path) -> tuple[NextDiTConfig, int]:
    """The denoiser of a folder `transformer`, and the width of the text states that it reads."""
    settings = settings_in(folder, "_class_name", "NextDiT")
    for key, expected in (
        ("norm_type", "rms"),
        ("qk_norm", True),
        ("pred_sigma", False),
        ("ffn_dim_multiplier", None),
    ):
        settings.same(key, expected)
    patch = settings.numbers("patch_size")
    if len(patch) != 3 or patch[0] != 1 or patch[1] != patch[2]:
        raise InputError(f"{settings.file}: patch_size: expected [1, n, n], found {list(patch)}.")
    softcap = settings.get("softcap", NextDiTConfig.softcap)
    config = settings.built(
        NextDiTConfig,
        width=settings.number("hidden_size"),
        depth=settings.number("depth"),
        heads=settings.number("num_heads"),
        kv_heads=settings.number("num_kv_heads"),
        channels=settings.number("in_channels"),
        patch=patch[1],
        multiple_of=settings.number("multiple_of"),
        norm_eps=settings.number("norm_eps", kind=float),
        softcap=softcap and settings.number("softcap", softcap, float),
    )
    return config, settings.number("caption_channels")


def nextdit_json(config: NextDiTConfig, text_width: int, kept: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of a denoiser, by every key of the released one: the inverse of
    `nextdit_config`.

    `kept` are values of keys that do not follow from the configuration, such as of the file that
    was imported.  `softcap`, which the released file has not, is there where it is not 30.
    """
    values = NEXTDIT_CONSTANTS | dict(kept)
    values |= {
        "hidden_size": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "num_kv_heads": config.kv_heads,
        "caption_channels": text_width,
        "in_channels": config.channels,
        "patch_size": [1, config.patch, config.patch],
        "multiple_of": config.multiple_of,
        "norm_eps": config.norm_eps,
        "forward_dtype": config.dtype,
    }
    if config.softcap != NextDiTConfig.softcap:
        values["softcap"] = config.softcap
    return dict(sorted(values.items()))


def vae_config(folder: pathlib.Path) -> VAEConfig:
    """The autoencoder of a folder `vae`, by diffusers' AutoencoderKL and its defaults."""
    settings = settings_in(folder, "_class_name", "AutoencoderKL")
    widths = settings.numbers("block_out_channels")
    for key, expected, default in (
        ("in_channels", 3, 3),
        ("out_channels", 3, 3),
        ("act_fn", "silu", "silu"),
        ("mid_block_add_attention", True, True),
        ("latents_mean", None, None),
        ("latents_std", None, None),
        ("down_block_types", ["DownEncoderBlock2D"] * len(widths), NO_DEFAULT),
        ("up_block_types", ["UpDecoderBlock2D"] * len(widths), NO_DEFAULT),
    ):
        settings.same(key, expected, default=default)
    shift = settings.get("shift_factor", None)
    return settings.built(
        VAEConfig,
        block_out_channels=widths,
        layers_per_block=settings.number("layers_per_block", 1),
        latent_channels=settings.number("latent_channels", 4),
        norm_num_groups=settings.number("norm_num_groups", 32),
        scaling_factor=settings.number("scaling_factor", 0.18215, float),
        shift_factor=settings.number("shift_factor", kind=float) if shift else 0.0,
        use_quant_conv=settings.flag("use_quant_conv", True),
        use_post_quant_conv=settings.flag("use_post_quant_conv", True),
    )


def t5_config(folder: pathlib.Path) -> tuple[T5Config, int]:
    """The encoder of a folder `text_encoder`, by transformers' T5, and its vocabulary's size.

    Of T5's variants only v1.1 and those that share its form (Flan) are known: gated GELU.
    """
    settings = settings_in(folder, "model_type", "t5")
    settings.same("feed_forward_proj", "gated-gelu", default="relu")  # T5 v1.0 has relu
    settings.same("layer_norm_epsilon", 1e-6, default=1e-6)
    config = settings.built(
        T5Config,
        width=settings.number("d_model"),
        depth=settings.number("num_layers"),
        heads=settings.number("num_heads"),
        head_width=settings.number("d_kv"),
        hidden=settings.number("d_ff"),
        buckets=settings.number("relative_attention_num_buckets", 32),
        farthest=settings.number("relative_attention_max_distance", 128),
    )
    return config, settings.number("vocab_size")


def schedule_in(folder: pathlib.Path) -> tuple[Schedule, dict[str, Any]]:
    """The schedule of a folder `scheduler`, and the values of its file."""
    settings = settings_in(folder, "_class_name", SCHEDULER_CLASS, file=SCHEDULER_FILE)
    return schedule_of(settings), settings.values


def schedule_of(settings: Settings) -> Schedule:
    """The schedule of a scheduler_config.json, by the defaults of diffusers' class.

    Raises InputError for an entry that is not known, or that asks for what is not implemented.
    """
    numbers = {"shift": 1.0, "base_shift": 0.5, "max_shift": 1.15}
    lengths = {"base_image_seq_len": 256, "max_image_seq_len": 4096}
    spacings = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential"}
    constants = {"num_train_timesteps": 1000}
    constants |= dict.fromkeys(("invert_sigmas", "stochastic_sampling", "use_beta_sigmas"), False)
    others = ("use_dynamic_shifting", "time_shift_type", "shift_terminal")
    known = (*numbers, *lengths, *spacings, *constants, *others)
    for key, value in settings.values.items():
        if key not in known and not key.startswith("_"):
            raise InputError(
                f"{settings.file}: {key}: expected no such entry, found {value!r}; known are "
                f"{', '.join(known)}."
            )
    for key, value in constants.items():
        settings.same(key, value, default=value)
    settings.same("time_shift_type", "exponential", "linear", default="exponential")
    spacing = [name for key, name in spacings.items() if settings.flag(key, False)]
    if len(spacing) > 1:
        raise InputError(
            f"{settings.file}: use_karras_sigmas and use_exponential_sigmas: expected one of them, "
            "found both."
        )
    terminal = settings.get("shift_terminal", None)
    if terminal and not settings.number("shift_terminal", kind=float) < 1:
        raise InputError(
            f"{settings.file}: shift_terminal: expected a number below 1, found {terminal!r}."
        )
    return settings.built(
        Schedule,
        use_dynamic_shifting=settings.flag("use_dynamic_shifting", False),
        time_shift_type=settings.get("time_shift_type", "exponential"),
        shift_terminal=terminal or None,
        spacing=spacing[0] if spacing else "shifted",
        **{key: settings.number(key, default, float) for key, default in numbers.items()},
        **{key: settings.number(key, default) for key, default in lengths.items()},
    )
