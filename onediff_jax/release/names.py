"""What the parameters of every network are called where they were released, a table for each.

Next-DiT's names are those of OneDiffusion's release, the autoencoder's those of diffusers'
AutoencoderKL, the text encoder's those of transformers' T5EncoderModel.
"""

from onediff_jax.models.layers import ADAPTED, LORA
from onediff_jax.models.nextdit import NextDiTConfig
from onediff_jax.release.mapping import Names

NEXTDIT_RULES = {
    "x_embedder.weight": ("x_embedder/kernel", "T"),
    "x_embedder.bias": ("x_embedder/bias", ""),
    "t_embedder.mlp.0.weight": ("t_embedder_0/kernel", "T"),
    "t_embedder.mlp.0.bias": ("t_embedder_0/bias", ""),
    "t_embedder.mlp.2.weight": ("t_embedder_2/kernel", "T"),
    "t_embedder.mlp.2.bias": ("t_embedder_2/bias", ""),
    "y_embedder.0.weight": ("y_embedder_norm/scale", ""),
    "y_embedder.0.bias": ("y_embedder_norm/bias", ""),
    "y_embedder.1.weight": ("y_embedder/kernel", "T"),
    "y_embedder.1.bias": ("y_embedder/bias", ""),
    "layers.{}.attention.wq.weight": ("layers/attention/wq/kernel", "TR"),
    "layers.{}.attention.wk.weight": ("layers/attention/wk/kernel", "TR"),
    "layers.{}.attention.wv.weight": ("layers/attention/wv/kernel", "T"),
    "layers.{}.attention.wk_y.weight": ("layers/attention/wk_y/kernel", "TR"),
    "layers.{}.attention.wv_y.weight": ("layers/attention/wv_y/kernel", "T"),
    "layers.{}.attention.wo.weight": ("layers/attention/wo/kernel", "T"),
    "layers.{}.attention.gate": ("layers/attention/gate", ""),
    "layers.{}.attention.q_norm.weight": ("layers/attention/q_norm/scale", "R"),
    "layers.{}.attention.q_norm.bias": ("layers/attention/q_norm/bias", "R"),
    "layers.{}.attention.k_norm.weight": ("layers/attention/k_norm/scale", "R"),
    "layers.{}.attention.k_norm.bias": ("layers/attention/k_norm/bias", "R"),
    "layers.{}.attention.ky_norm.weight": ("layers/attention/ky_norm/scale", "R"),
    "layers.{}.attention.ky_norm.bias": ("layers/attention/ky_norm/bias", "R"),
    "layers.{}.feed_forward.w1.weight": ("layers/feed_forward/w1/kernel", "T"),
    "layers.{}.feed_forward.w2.weight": ("layers/feed_forward/w2/kernel", "T"),
    "layers.{}.feed_forward.w3.weight": ("layers/feed_forward/w3/kernel", "T"),
    "layers.{}.attention_norm1.weight": ("layers/attention_norm1/scale", ""),
    "layers.{}.attention_norm2.weight": ("layers/attention_norm2/scale", ""),
    "layers.{}.ffn_norm1.weight": ("layers/ffn_norm1/scale", ""),
    "layers.{}.ffn_norm2.weight": ("layers/ffn_norm2/scale", ""),
    "layers.{}.attention_y_norm.weight": ("layers/attention_y_norm/scale", ""),
    "layers.{}.adaLN_modulation.1.weight": ("layers/adaln/kernel", "T"),
    "layers.{}.adaLN_modulation.1.bias": ("layers/adaln/bias", ""),
    "final_layer.linear.weight": ("final_linear/kernel", "T"),
    "final_layer.linear.bias": ("final_linear/bias", ""),
    "final_layer.adaLN_modulation.1.weight": ("final_adaln/kernel", "T"),
    "final_layer.adaLN_modulation.1.bias": ("final_adaln/bias", ""),
}

# Adapters by PEFT's names.  A rotary matrix turns the channels that its adapter puts out.
ADAPTER_RULES = {
    name.replace("weight", f"{part}.weight"): (path.replace("kernel", ours), kept)
    for name, (path, transforms) in NEXTDIT_RULES.items()
    if path.split("/")[-2:][0] in ADAPTED
    for part, ours, kept in zip(("lora_A", "lora_B"), LORA, ("T", transforms), strict=True)
}

RESNET_RULES = {
    "norm1.weight": ("norm1/scale", ""),
    "norm1.bias": ("norm1/bias", ""),
    "conv1.weight": ("conv1/kernel", "C"),
    "conv1.bias": ("conv1/bias", ""),
    "norm2.weight": ("norm2/scale", ""),
    "norm2.bias": ("norm2/bias", ""),
    "conv2.weight": ("conv2/kernel", "C"),
    "conv2.bias": ("conv2/bias", ""),
    "conv_shortcut.weight": ("shortcut/kernel", "C"),
    "conv_shortcut.bias": ("shortcut/bias", ""),
}
RESNETS = {
    "{}.down_blocks.{}.resnets.{}": "{}/down_{}_resnet_{}",
    "{}.up_blocks.{}.resnets.{}": "{}/up_{}_resnet_{}",
    "{}.mid_block.resnets.{}": "{}/mid_resnet_{}",
}
VAE_RULES = {
    "{}.conv_in.weight": ("{}/conv_in/kernel", "C"),
    "{}.conv_in.bias": ("{}/conv_in/bias", ""),
    **{
        f"{name}.{part}": (f"{path}/{ours}", transforms)
        for name, path in RESNETS.items()
        for part, (ours, transforms) in RESNET_RULES.items()
    },
    "{}.down_blocks.{}.downsamplers.0.conv.weight": ("{}/down_{}_conv/kernel", "C"),
    "{}.down_blocks.{}.downsamplers.0.conv.bias": ("{}/down_{}_conv/bias", ""),
    "{}.up_blocks.{}.upsamplers.0.conv.weight": ("{}/up_{}_conv/kernel", "C"),
    "{}.up_blocks.{}.upsamplers.0.conv.bias": ("{}/up_{}_conv/bias", ""),
    "{}.mid_block.attentions.0.group_norm.weight": ("{}/mid_attention/norm/scale", ""),
    "{}.mid_block.attentions.0.group_norm.bias": ("{}/mid_attention/norm/bias", ""),
    "{}.mid_block.attentions.0.to_q.weight": ("{}/mid_attention/q/kernel", "T"),
    "{}.mid_block.attentions.0.to_q.bias": ("{}/mid_attention/q/bias", ""),
    "{}.mid_block.attentions.0.to_k.weight": ("{}/mid_attention/k/kernel", "T"),
    "{}.mid_block.attentions.0.to_k.bias": ("{}/mid_attention/k/bias", ""),
    "{}.mid_block.attentions.0.to_v.weight": ("{}/mid_attention/v/kernel", "T"),
    "{}.mid_block.attentions.0.to_v.bias": ("{}/mid_attention/v/bias", ""),
    "{}.mid_block.attentions.0.to_out.0.weight": ("{}/mid_attention/o/kernel", "T"),
    "{}.mid_block.attentions.0.to_out.0.bias": ("{}/mid_attention/o/bias", ""),
    "{}.conv_norm_out.weight": ("{}/norm_out/scale", ""),
    "{}.conv_norm_out.bias": ("{}/norm_out/bias", ""),
    "{}.conv_out.weight": ("{}/conv_out/kernel", "C"),
    "{}.conv_out.bias": ("{}/conv_out/bias", ""),
    "quant_conv.weight": ("encoder/quant_conv/kernel", "C"),
    "quant_conv.bias": ("encoder/quant_conv/bias", ""),
    "post_quant_conv.weight": ("decoder/post_quant_conv/kernel", "C"),
    "post_quant_conv.bias": ("decoder/post_quant_conv/bias", ""),
}
# What diffusers called them before it had one class for all attention.
VAE_ALIASES = {
    f"{{}}.mid_block.attentions.0.{old}.{{}}": f"{{}}.mid_block.attentions.0.{name}.{{}}"
    for old, name in dict(query="to_q", key="to_k", value="to_v", proj_attn="to_out.0").items()
}

T5_RULES = {
    "shared.weight": ("embedding", ""),
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": ("relative_bias", ""),
    "encoder.block.{}.layer.0.layer_norm.weight": ("layers/attention_norm/scale", ""),
    "encoder.block.{}.layer.0.SelfAttention.q.weight": ("layers/q/kernel", "T"),
    "encoder.block.{}.layer.0.SelfAttention.k.weight": ("layers/k/kernel", "T"),
    "encoder.block.{}.layer.0.SelfAttention.v.weight": ("layers/v/kernel", "T"),
    "encoder.block.{}.layer.0.SelfAttention.o.weight": ("layers/o/kernel", "T"),
    "encoder.block.{}.layer.1.layer_norm.weight": ("layers/mlp_norm/scale", ""),
    "encoder.block.{}.layer.1.DenseReluDense.wi_0.weight": ("layers/wi_0/kernel", "T"),
    "encoder.block.{}.layer.1.DenseReluDense.wi_1.weight": ("layers/wi_1/kernel", "T"),
    "encoder.block.{}.layer.1.DenseReluDense.wo.weight": ("layers/wo/kernel", "T"),
    "encoder.final_layer_norm.weight": ("final_norm/scale", ""),
}

VAE_NAMES = Names("an AutoencoderKL", VAE_RULES, VAE_ALIASES)
T5_NAMES = Names("a T5 encoder", T5_RULES, {"encoder.embed_tokens.weight": "shared.weight"})


def nextdit_names(config: NextDiTConfig) -> Names:
    """The table of a Next-DiT."""
    return Names("a Next-DiT", NEXTDIT_RULES, head=config.width // config.heads)


def adapter_names(config: NextDiTConfig) -> Names:
    """The table of a Next-DiT's adapters alone."""
    return Names("a Next-DiT's adapters", ADAPTER_RULES, head=config.width // config.heads)
