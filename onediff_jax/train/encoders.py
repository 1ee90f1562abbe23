"""The run's codec and text encoder: which they are, and the released ones read from their folders.

A released network is never trained and belongs to no checkpoint: a run names its folder, and keeps
the fingerprint of what was in it.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from onediff_jax.copies import local_copy
from onediff_jax.data.text import T5Tokenizer, Tokenizer
from onediff_jax.errors import InputError
from onediff_jax.models.networks import Networks
from onediff_jax.models.nextdit import NextDiT, NextDiTConfig
from onediff_jax.models.t5 import T5Config, T5Encoder
from onediff_jax.models.vae import AutoencoderKL, VAEConfig
from onediff_jax.paths import Location, missing, opened_path
from onediff_jax.release.configs import t5_config, vae_config
from onediff_jax.release.mapping import from_released
from onediff_jax.release.names import T5_NAMES, VAE_NAMES
from onediff_jax.release.tensors import StoredTensor, read_tensors
from onediff_jax.sharding import placed, shardings_of

NAMES = {"text": T5_NAMES, "codec": VAE_NAMES}
INNER = {"text": "text_encoder", "codec": "vae"}  # their folders in that of a released pipeline
DTYPES = ("float32", "bfloat16")
PIECES, PIECE = 16, 256  # of every tensor, and their bytes, that go into a fingerprint
T5_VOCABULARY = 32_128  # pieces that the released encoder knows


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Prompts: a vocabulary and an encoder of the data set's own, or a released T5's."""

    kind: str = "trained"  # jointly, on the data set's own vocabulary; t5: released, frozen
    vocabulary: int = 1024  # trained: pieces, at most
    length: int = 300  # tokens of a prompt, end token included; longer ones are cut
    encoder: T5Config = T5Config(
        width=128, depth=2, heads=4, head_width=32, hidden=256, dtype="float32"
    )
    path: Location = ""  # t5: a folder with text_encoder/ and tokenizer/, or that of the encoder
    tokenizer: Location = ""  # t5: the tokenizer's folder, where it is not in text.path
    dtype: str = "bfloat16"  # t5: of its matrices and activations

    def __post_init__(self):
        refuse_unknown("text.kind", self.kind, ("trained", "t5"))
        refuse_unknown("text.dtype", self.dtype, DTYPES)
        if self.length < 1:
            raise InputError(f"text.length is {self.length}; it must be at least 1.")
        if self.kind == "t5" and not self.path:
            raise InputError(
                "text.kind is 't5' and text.path is empty; set it to a folder with text_encoder/ "
                "and tokenizer/."
            )


@dataclasses.dataclass(frozen=True)
class CodecConfig:
    """The codec between images and latents: fitted to the data set, or a released autoencoder."""

    kind: str = "linear"  # principal components; sd3_vae: released, frozen
    factor: int = 4  # linear: pixels along each side of a latent
    whitening: float = 0.0  # linear; 0: channels keep their proportions; 1: all have variance 1
    pictures: int = 2000  # linear: views that the components are fitted to
    path: Location = ""  # sd3_vae: a folder with vae/, or that of the autoencoder
    posterior: str = "sample"  # sd3_vae: latents are drawn, as released, or each is its mean
    use_shift_factor: bool = False  # sd3_vae; the released pipeline ignores the folder's
    tile: int = 0  # sd3_vae: pixels along a side of a tile of a large image; 0: never cut
    dtype: str = "bfloat16"  # sd3_vae: of activations

    def __post_init__(self):
        refuse_unknown("codec.kind", self.kind, ("linear", "sd3_vae"))
        refuse_unknown("codec.posterior", self.posterior, ("sample", "mean"))
        refuse_unknown("codec.dtype", self.dtype, DTYPES)
        if self.kind == "sd3_vae" and not self.path:
            raise InputError(
                "codec.kind is 'sd3_vae' and codec.path is empty; set it to a folder with vae/."
            )


def refuse_unknown(setting: str, value: str, known: tuple[str, ...]) -> None:
    """Raises where a setting is none of the words that it can be."""
    if value not in known:
        raise InputError(f"{setting} is {value!r}; it can be {' or '.join(known)}.")


def is_there(part: str, path: str) -> bool:
    """Whether a released network's folder can be seen; `part` is text or codec."""
    return any(file.is_file() for file in _settings_files(part, path))


def settings_file(part: str, path: str) -> epath.Path:
    """The config.json of a released network, wherever it is; raises InputError without one."""
    for file in _settings_files(part, path):
        if file.is_file():
            return file
    raise InputError(
        f"config.{part}.path is {path!r}, and neither it nor {INNER[part]}/ in it has a "
        f"config.json; if the folder has moved, say where it is: --config.{part}.path=FOLDER to "
        f"train, --{part}_path=FOLDER to sample.{missing(path)}"
    )


def _settings_files(part: str, path: str) -> list[epath.Path]:
    given = opened_path(path)
    return [folder / "config.json" for folder in (given / INNER[part], given)]


def released_folder(part: str, path: str) -> pathlib.Path:
    """The folder of a released network on this machine's disk, copied there if it is elsewhere."""
    return local_copy(settings_file(part, path).parent)


def settings_folder(part: str, path: str) -> pathlib.Path:
    """The same folder, of whose files config.json alone need be there."""
    return local_copy(settings_file(part, path)).parent


def tokenizer_folder(config: TextConfig) -> pathlib.Path:
    """The folder of the released tokenizer on this machine's disk."""
    if config.tokenizer:
        return local_copy(config.tokenizer)
    given = opened_path(config.path)
    beside = (given / "tokenizer", given.parent / "tokenizer")
    return local_copy(next((folder for folder in beside if folder.is_dir()), given))


def autoencoder_of(config: CodecConfig, absent: bool = False) -> AutoencoderKL:
    """The released autoencoder, without its parameters; `absent` as in `networks_of`."""
    found = VAEConfig()
    if not absent or is_there("codec", config.path):
        found = vae_config(settings_folder("codec", config.path))
    return AutoencoderKL(
        dataclasses.replace(
            found,
            dtype=config.dtype,
            tile=config.tile or None,
            use_shift_factor=config.use_shift_factor,
        )
    )


def text_encoder_of(config: TextConfig, absent: bool = False) -> T5Encoder:
    """The released text encoder, likewise."""
    found, pieces = T5Config(), T5_VOCABULARY
    if not absent or is_there("text", config.path):
        found, pieces = t5_config(settings_folder("text", config.path))
    return T5Encoder(dataclasses.replace(found, dtype=config.dtype), pieces)


def networks_of(
    model: NextDiTConfig,
    text: TextConfig,
    codec: CodecConfig,
    vocabulary: int,
    remat: str,
    absent: bool = False,
) -> Networks:
    """The modules of a run; `vocabulary` is the number of pieces of a trained one.

    If released networks may be `absent`, those that are have the release's shapes.  Raises
    InputError where the autoencoder's latents are not those that the denoiser takes.
    """
    frozen, encoder = [], T5Encoder(text.encoder, vocabulary)
    if text.kind == "t5":
        encoder = text_encoder_of(text, absent)
        if vocabulary > encoder.vocabulary:
            raise InputError(
                f"The tokenizer has {vocabulary} pieces, and the encoder in {text.path} knows "
                f"{encoder.vocabulary}; the tokenizer is another model's."
            )
        frozen.append("text")
    autoencoder = None
    if codec.kind == "sd3_vae":
        autoencoder = autoencoder_of(codec, absent)
        frozen.append("codec")
        if autoencoder.channels != model.channels:
            raise InputError(
                f"config.model.channels is {model.channels}; the autoencoder in "
                f"{codec.path} has {autoencoder.channels}, so set it to that."
            )
    return Networks(
        NextDiT(model, remat), encoder, autoencoder, tuple(frozen), codec.posterior == "sample"
    )


def tokenizer_of(config: TextConfig, vocabulary: bytes) -> Tokenizer:
    """The tokenizer of a run, of a vocabulary that was built or read."""
    kind = T5Tokenizer if config.kind == "t5" else Tokenizer
    return kind(vocabulary, config.length)


def tensors_of(text: TextConfig, codec: CodecConfig) -> dict[str, dict[str, StoredTensor]]:
    """The tensors of the run's released networks, still in their files."""
    paths = {"text": text.path} if text.kind == "t5" else {}
    paths |= {"codec": codec.path} if codec.kind == "sd3_vae" else {}
    return {part: read_tensors(released_folder(part, path)) for part, path in paths.items()}


def fingerprints_of(text: TextConfig, codec: CodecConfig) -> dict[str, str]:
    """What tells the run's released networks from others, by part."""
    return {part: fingerprint(tensors) for part, tensors in tensors_of(text, codec).items()}


def fingerprint(tensors: Mapping[str, StoredTensor]) -> str:
    """A hash of all names, types and shapes, and of pieces spread over every tensor.

    Of 4 KiB each at most, so that it costs no reading of gigabytes: it tells one training from
    another, and not that a single number was changed.  How tensors lie in files does not matter.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        with tensor.file.open("rb", buffering=0) as file:
            for start in np.linspace(0, max(tensor.nbytes - PIECE, 0), PIECES).astype(int):
                file.seek(tensor.offset + int(start))
                found.update(file.read(min(PIECE, tensor.nbytes)))
    return found.hexdigest()[:16]


def refuse_others(
    text: TextConfig, codec: CodecConfig, expected: Mapping[str, str], where: str
) -> None:
    """Raises where a released network is not the one of `where`, which has these fingerprints."""
    for part, found in fingerprints_of(text, codec).items():
        if expected.get(part, found) != found:
            path = getattr(text if part == "text" else codec, "path")  # noqa: B009
            raise InputError(
                f"config.{part}.path is {path!r}, whose weights have the fingerprint {found}; "
                f"{where} was made with {expected[part]}.  Name the folder of those."
            )


def pretrained_params(
    networks: Networks,
    text: TextConfig,
    codec: CodecConfig,
    mesh: Mesh | None,
    parts: tuple[str, ...] = ("text", "codec"),
) -> dict[str, Any]:
    """Parameters of the released networks among `parts`; sharded by the table if there is a mesh.

    Matrices of T5 are in its own type, all others in float32.
    """
    shapes, params = pretrained_shapes(networks, text, mesh, parts), {}
    for part, tensors in tensors_of(text, codec).items():
        if part not in parts:
            continue
        params[part] = from_released(tensors, NAMES[part], shapes[part])
        if mesh is not None:
            where = jax.tree.map(lambda shape: shape.sharding, shapes[part])
            params[part] = placed(params[part], where)
    return params


def pretrained_shapes(
    networks: Networks, text: TextConfig, mesh: Mesh | None, parts: tuple[str, ...]
) -> dict[str, Any]:
    """Shapes of what `pretrained_params` returns, with shardings if there is a mesh."""
    found = {}
    for part, boxed in jax.eval_shape(networks.init_pretrained, jax.random.key(0)).items():
        if part not in parts:
            continue
        shapes = nn.meta.unbox(boxed)
        if part == "text":
            shapes = jax.tree_util.tree_map_with_path(
                lambda path, shape: in_type(shape, path[-1].key, text.dtype), shapes
            )
        if mesh is not None:
            shapes = jax.tree.map(
                lambda shape, sharding: jax.ShapeDtypeStruct(
                    shape.shape, shape.dtype, sharding=sharding
                ),
                shapes,
                shardings_of(boxed, mesh),
            )
        found[part] = shapes
    return found


def in_type(shape: jax.ShapeDtypeStruct, name: str, dtype: str) -> jax.ShapeDtypeStruct:
    """A matrix's or table's shape in that type; another's as it is."""
    matrix = name in ("kernel", "embedding")
    return jax.ShapeDtypeStruct(shape.shape, np.dtype(dtype) if matrix else shape.dtype)
