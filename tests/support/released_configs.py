"""config.json of the released networks, key by key, and of a tiny Next-DiT."""

import json

from places import TOOLS

RELEASED = json.loads((TOOLS / "released" / "transformer.json").read_text())
# As `tiny.py` has it, so that its runs can start from it.
TINY = RELEASED | {
    "hidden_size": 24, "num_heads": 4, "num_kv_heads": 2, "depth": 2, "caption_channels": 16,
    "in_channels": 8, "multiple_of": 8,
}  # fmt: skip
# As Stable Diffusion 3's autoencoder and a T5 v1.1 XL encoder are published.
VAE = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.29.0.dev0", "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4, "force_upcast": True, "in_channels": 3,
    "latent_channels": 16, "latents_mean": None, "latents_std": None, "layers_per_block": 2,
    "norm_num_groups": 32, "out_channels": 3, "sample_size": 1024, "scaling_factor": 1.5305,
    "shift_factor": 0.0609, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "use_post_quant_conv": False, "use_quant_conv": False,
}  # fmt: skip
T5 = {
    "architectures": ["T5EncoderModel"], "d_ff": 5120, "d_kv": 64, "d_model": 2048,
    "dense_act_fn": "gelu_new", "feed_forward_proj": "gated-gelu", "is_gated_act": True,
    "layer_norm_epsilon": 1e-06, "model_type": "t5", "num_decoder_layers": 24, "num_heads": 32,
    "num_layers": 24, "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32, "tie_word_embeddings": False, "vocab_size": 32128,
}  # fmt: skip
