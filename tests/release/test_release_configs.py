"""config.json of the released networks: what it says in our settings, and what is refused."""

import dataclasses
import json

import pytest
from released_configs import RELEASED, T5, VAE

from onediff_jax.errors import InputError
from onediff_jax.models.nextdit import NextDiTConfig
from onediff_jax.models.t5 import T5Config
from onediff_jax.models.vae import VAEConfig
from onediff_jax.ops.solve import Schedule
from onediff_jax.release.configs import nextdit_config, schedule_in, t5_config, vae_config

READ = {"nextdit": nextdit_config, "vae": vae_config, "t5": t5_config}
VALUES = {"nextdit": RELEASED, "vae": VAE, "t5": T5}


def config_of(folder, network, values):
    (folder / "config.json").write_text(json.dumps(values))
    return READ[network](folder)


def test_the_released_ones_are_our_defaults(tmp_path):
    assert config_of(tmp_path, "nextdit", RELEASED) == (NextDiTConfig(), 2048)
    assert config_of(tmp_path, "vae", VAE) == VAEConfig()
    assert config_of(tmp_path, "t5", T5) == (T5Config(), 32128)


@pytest.mark.parametrize(
    ("network", "changes", "field", "value"),
    [
        ("nextdit", {"hidden_size": 1920}, "width", 1920),
        ("nextdit", {"depth": 3}, "depth", 3),
        ("nextdit", {"num_heads": 16}, "heads", 16),
        ("nextdit", {"num_kv_heads": 4}, "kv_heads", 4),
        ("nextdit", {"in_channels": 8}, "channels", 8),
        ("nextdit", {"patch_size": [1, 4, 4]}, "patch", 4),
        ("nextdit", {"multiple_of": 64}, "multiple_of", 64),
        ("nextdit", {"norm_eps": 1e-6}, "norm_eps", 1e-6),
        ("nextdit", {"softcap": None}, "softcap", None),
        ("nextdit", {"softcap": 50}, "softcap", 50.0),
        ("vae", {"layers_per_block": 3}, "layers_per_block", 3),
        ("vae", {"latent_channels": 4}, "latent_channels", 4),
        ("vae", {"norm_num_groups": 16}, "norm_num_groups", 16),
        ("vae", {"scaling_factor": 0.5}, "scaling_factor", 0.5),
        ("vae", {"shift_factor": None}, "shift_factor", 0.0),
        ("vae", {"shift_factor": 0.5}, "shift_factor", 0.5),
        ("vae", {"use_quant_conv": True}, "use_quant_conv", True),
        ("vae", {"use_post_quant_conv": True}, "use_post_quant_conv", True),
        ("t5", {"d_model": 1024}, "width", 1024),
        ("t5", {"num_layers": 12}, "depth", 12),
        ("t5", {"num_heads": 16}, "heads", 16),
        ("t5", {"d_kv": 32}, "head_width", 32),
        ("t5", {"d_ff": 512}, "hidden", 512),
        ("t5", {"relative_attention_num_buckets": 16}, "buckets", 16),
        ("t5", {"relative_attention_max_distance": 64}, "farthest", 64),
    ],
)
def test_every_setting_is_read(tmp_path, network, changes, field, value):
    found = config_of(tmp_path, network, VALUES[network] | changes)
    default = config_of(tmp_path, network, VALUES[network])
    if isinstance(found, tuple):
        found, default = found[0], default[0]
    assert found == dataclasses.replace(default, **{field: value}) != default


def test_what_a_file_leaves_out_is_the_library_s_default(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    short = {k: VAE[k] for k in ("_class_name", "block_out_channels", "norm_num_groups")}
    short |= {k: VAE[k] for k in ("down_block_types", "up_block_types")}
    theirs = diffusers.AutoencoderKL(**{k: v for k, v in short.items() if k[0] != "_"}).config
    found = config_of(tmp_path, "vae", short)
    for key in ("layers_per_block", "latent_channels", "scaling_factor", "use_quant_conv"):
        assert getattr(found, key) == theirs[key]
    assert found.use_post_quant_conv and not theirs.shift_factor and found.shift_factor == 0
    keys = ("model_type", "d_model", "num_layers", "num_heads", "d_kv", "d_ff", "vocab_size")
    theirs = transformers.T5Config(**{k: T5[k] for k in keys}, feed_forward_proj="gated-gelu")
    found, _ = config_of(tmp_path, "t5", {k: T5[k] for k in (*keys, "feed_forward_proj")})
    assert found.buckets == theirs.relative_attention_num_buckets
    assert found.farthest == theirs.relative_attention_max_distance


@pytest.mark.parametrize(
    ("network", "changes", "said"),
    [
        ("nextdit", {"_class_name": "SD3Transformer2DModel"}, "_class_name: expected 'NextDiT'"),
        ("nextdit", {"_class_name": "LuminaNextDiT2DModel"}, "found 'LuminaNextDiT2DModel'"),
        ("nextdit", {"_class_name": None}, "_class_name: expected 'NextDiT', found None"),
        ("nextdit", {"hidden_size": "3840"}, "hidden_size: expected a positive number, found '384"),
        ("nextdit", {"hidden_size": 3841}, "config.json: model.width is 3841"),
        ("nextdit", {"depth": 0}, "depth: expected a positive number, found 0"),
        ("nextdit", {"depth": True}, "depth: expected a positive number, found True"),
        ("nextdit", {"qk_norm": False}, "qk_norm: expected True, found False"),
        ("nextdit", {"norm_type": "layer"}, "norm_type: expected 'rms', found 'layer'"),
        ("nextdit", {"pred_sigma": True}, "pred_sigma: expected False, found True"),
        ("nextdit", {"ffn_dim_multiplier": 2}, "ffn_dim_multiplier: expected None, found 2"),
        ("nextdit", {"patch_size": [2, 2, 2]}, "patch_size: expected [1, n, n], found [2, 2, 2]"),
        ("nextdit", {"patch_size": 2}, "patch_size: expected positive integers, found 2"),
        ("nextdit", {"num_kv_heads": 5}, "config.json: model.kv_heads is 5"),
        ("vae", {"_class_name": "AsymmetricAutoencoderKL"}, "found 'AsymmetricAutoencoderKL'"),
        ("vae", {"act_fn": "relu"}, "act_fn: expected 'silu', found 'relu'"),
        ("vae", {"mid_block_add_attention": False}, "mid_block_add_attention: expected True"),
        ("vae", {"latents_mean": [0.0]}, "latents_mean: expected None, found [0.0]"),
        ("vae", {"in_channels": 4}, "in_channels: expected 3, found 4"),
        ("vae", {"down_block_types": ["DownBlock2D"] * 4}, "down_block_types: expected"),
        ("vae", {"use_quant_conv": "no"}, "use_quant_conv: expected True or False, found 'no'"),
        ("vae", {"norm_num_groups": 7}, "config.json: block_out_channels is"),
        ("t5", {"model_type": "umt5"}, "model_type: expected 't5', found 'umt5'"),
        (
            "t5",
            {"feed_forward_proj": "relu"},
            "feed_forward_proj: expected 'gated-gelu', found 're",
        ),
        ("t5", {"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon: expected 1e-06, found 1e-05"),
    ],
)
def test_another_network_or_variant_is_refused_in_one_line(tmp_path, network, changes, said):
    with pytest.raises(InputError) as caught:
        config_of(tmp_path, network, VALUES[network] | changes)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "config.json")) and said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("network", "key"),
    [("nextdit", "hidden_size"), ("nextdit", "qk_norm"), ("nextdit", "caption_channels"),
     ("vae", "block_out_channels"), ("vae", "_class_name"), ("t5", "vocab_size"),
     ("t5", "feed_forward_proj"), ("t5", "model_type")],
)  # fmt: skip
def test_a_missing_key_is_named(tmp_path, network, key):
    values = {name: value for name, value in VALUES[network].items() if name != key}
    with pytest.raises(InputError, match=f"config.json: {key}: expected .*, found (none|None|'r)"):
        config_of(tmp_path, network, values)


SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"_class_name": "DDIMScheduler"}, "_class_name: expected 'FlowMatchEulerDiscreteSched"),
        ({"beta_schedule": "linear"}, "beta_schedule: expected no such entry, found 'linear'"),
        ({"num_train_timesteps": 500}, "num_train_timesteps: expected 1000, found 500"),
        ({"invert_sigmas": True}, "invert_sigmas: expected False, found True"),
        ({"stochastic_sampling": True}, "stochastic_sampling: expected False, found True"),
        ({"use_beta_sigmas": True}, "use_beta_sigmas: expected False, found True"),
        ({"time_shift_type": "cubic"}, "time_shift_type: expected 'exponential' or 'linear'"),
        ({"shift": 0}, "shift: expected a positive number, found 0"),
        ({"shift_terminal": 1.5}, "shift_terminal: expected a number below 1, found 1.5"),
        ({"max_image_seq_len": 256}, "scheduler_config.json: base_image_seq_len is 256 and max"),
        (
            {"use_karras_sigmas": True, "use_exponential_sigmas": True},
            "expected one of them, found both",
        ),
    ],
)
def test_a_scheduler_that_is_not_ours_is_refused_in_one_line(tmp_path, values, said):
    file = tmp_path / "scheduler_config.json"
    file.write_text(json.dumps(SCHEDULER | values))
    with pytest.raises(InputError) as caught:
        schedule_in(tmp_path)
    message = str(caught.value)
    assert message.startswith(str(file)) and said in message and "\n" not in message


def test_a_scheduler_is_read_with_the_library_s_defaults(tmp_path):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    assert schedule_in(tmp_path) == (Schedule(1.0, use_dynamic_shifting=False), SCHEDULER)


def test_a_folder_without_a_readable_configuration_is_refused(tmp_path):
    for network in READ:
        with pytest.raises(InputError, match="config.json is missing"):
            READ[network](tmp_path)
        with pytest.raises(InputError, match="nothing is no folder"):
            READ[network](tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json: expected JSON, found b'{'"):
        vae_config(tmp_path)
