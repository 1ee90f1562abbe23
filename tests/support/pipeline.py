"""A tiny released folder: autoencoder, T5 encoder, tokenizer and denoiser with drawn weights."""

import dataclasses
import io
import json
import pathlib

import flax.linen as nn
import jax
import sentencepiece
from bridge import MODEL, TINY, write_transformer
from drawn import drawn_tensors
from safetensors.numpy import save_file
from witnesses import SMALL, TEXT, vae_tensors

from onediff_jax.models.t5 import T5Encoder
from onediff_jax.models.vae import AutoencoderKL
from onediff_jax.release.mapping import released_shapes
from onediff_jax.release.names import T5_NAMES, VAE_NAMES, nextdit_names
from onediff_jax.release.shapes import denoiser_shapes

VAE = dataclasses.replace(SMALL, latent_channels=8)  # as many as rays need
PIECES = 200  # rows of the table; the vocabulary is smaller
VAE_JSON = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": list(VAE.block_out_channels),
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": VAE.layers_per_block,
    "latent_channels": VAE.latent_channels,
    "norm_num_groups": VAE.norm_num_groups,
    "scaling_factor": VAE.scaling_factor,
    "shift_factor": VAE.shift_factor,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
T5_JSON = {
    "model_type": "t5",
    "feed_forward_proj": "gated-gelu",
    "d_model": TEXT.width,
    "num_layers": TEXT.depth,
    "num_heads": TEXT.heads,
    "d_kv": TEXT.head_width,
    "d_ff": TEXT.hidden,
    "vocab_size": PIECES,
}


def vae_weights() -> dict:
    """The autoencoder's tensors by their released names."""
    shapes = nn.meta.unbox(jax.eval_shape(AutoencoderKL(VAE).init, jax.random.key(0)))
    return vae_tensors(released_shapes(shapes, VAE_NAMES))


def t5_weights() -> dict:
    """The text encoder's."""
    ones = jax.numpy.ones((1, 1), int)
    shapes = jax.eval_shape(T5Encoder(TEXT, PIECES).init, jax.random.key(0), ones, ones > 0)
    return drawn_tensors(released_shapes(nn.meta.unbox(shapes)["params"], T5_NAMES))


def spiece_model() -> bytes:
    """A vocabulary that is numbered as T5's, and like it knows no `<`."""
    model = io.BytesIO()
    words = ["a", "small", "large", "box", "ball", "number", "another", "bright", "mask", "item"]
    words += ["make", "the", "cyan", "orange"]
    prompts = [f"{a} {b} {i}" for a in words for b in words for i in range(3)]
    prompts += ["[[text2image]] [[depth2image]] [[multiview]] #00FFFF #FFA500 > : 3456789"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(prompts),
        model_writer=model,
        model_type="unigram",
        vocab_size=PIECES - 110,  # the library adds 100 that mark gaps
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def write_pipeline(folder: pathlib.Path) -> pathlib.Path:
    """The folder, written."""
    for inner, config, tensors, name in (
        ("vae", VAE_JSON, vae_weights(), "diffusion_pytorch_model"),
        ("text_encoder", T5_JSON, t5_weights(), "model"),
    ):
        (folder / inner).mkdir(parents=True)
        (folder / inner / "config.json").write_text(json.dumps(config))
        save_file(tensors, folder / inner / f"{name}.safetensors")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "spiece.model").write_bytes(spiece_model())
    return folder


def write_release(folder: pathlib.Path) -> pathlib.Path:
    """The same with a denoiser that reads the states of its text encoder."""
    width = T5_JSON["d_model"]
    shapes = released_shapes(denoiser_shapes(MODEL, width), nextdit_names(MODEL))
    config = TINY | {"caption_channels": width}
    return write_transformer(write_pipeline(folder), drawn_tensors(shapes), config)
