"""The run's codec and text encoder: pretrained ones are read from their folders; both encode ahead.

A pretrained network is never trained and belongs to no checkpoint: a run names its folder, and
keeps the fingerprint of what was in it.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from onediff_jax.copies import local_copy
from onediff_jax.data.codecs import Codec
from onediff_jax.data.example import EncodedImage, EncodedPrompt, SourcedExample
from onediff_jax.data.sources.arrayrecord import BFLOAT16
from onediff_jax.data.text import T5Tokenizer, Tokenizer
from onediff_jax.errors import InputError
from onediff_jax.models.networks import Networks
from onediff_jax.models.nextdit import NextDiT, NextDiTConfig
from onediff_jax.models.t5 import T5Config, T5Encoder
from onediff_jax.models.vae import AutoencoderKL, VAEConfig
from onediff_jax.paths import Location, access_advice, opened_path
from onediff_jax.release.configs import t5_config, vae_config
from onediff_jax.release.mapping import from_released
from onediff_jax.release.names import T5_NAMES, VAE_NAMES
from onediff_jax.release.tensors import StoredTensor, read_tensors
from onediff_jax.sampling.generate import ImageCodec
from onediff_jax.settings import FLOATS, Section, setting
from onediff_jax.sharding import sharded_arrays, shardings_of

TENSOR_NAMES = {"text": T5_NAMES, "codec": VAE_NAMES}
INNER = {"text": "text_encoder", "codec": "vae"}  # their folders in that of a released pipeline
PIECES, PIECE = 16, 256  # of every tensor, and their bytes, that go into a fingerprint
T5_VOCABULARY = 32_128  # pieces that the released encoder knows


@dataclasses.dataclass(frozen=True)
class TextConfig(Section):
    """Prompts: a vocabulary and an encoder of the data set's own, or a released T5's."""

    kind: str = setting(
        "trained",
        "trained: jointly, on the data set's own vocabulary; t5: pretrained, never trained",
        binds="weights",
        choices=("trained", "t5"),
    )
    vocabulary: int = setting(1024, "trained: pieces, at most", binds="weights", least=1)
    length: int = setting(
        300, "tokens of a prompt, end token included; longer ones are cut", least=1
    )
    encoder: T5Config = T5Config(
        width=128, depth=2, heads=4, head_width=32, hidden=256, dtype="float32"
    )
    path: Location = setting(
        "", "t5: a folder with text_encoder/ and tokenizer/, or that of the encoder"
    )
    tokenizer: Location = setting("", "t5: the tokenizer's folder, where it is not in text.path")
    dtype: str = setting("bfloat16", "t5: of its matrices and activations", choices=FLOATS)

    def __post_init__(self):
        super().__post_init__()
        if self.kind == "t5" and not self.path:
            raise InputError(
                "text.kind is 't5' and text.path is empty; set it to a folder with text_encoder/ "
                "and tokenizer/."
            )


@dataclasses.dataclass(frozen=True)
class CodecConfig(Section):
    """The codec between images and latents: fitted to the data set, or a released autoencoder."""

    kind: str = setting(
        "linear",
        "linear: principal components; sd3_vae: a pretrained autoencoder, never trained",
        binds="weights",
        choices=("linear", "sd3_vae"),
    )
    factor: int = setting(4, "linear: pixels along each side of a latent", binds="weights", least=1)
    whitening: float = setting(
        0.0,
        "linear: 0: channels keep their proportions; 1: all have variance 1",
        binds="weights",
        least=0,
        most=1,
    )
    pictures: int = setting(2000, "linear: views that the components are fitted to", least=1)
    path: Location = setting("", "sd3_vae: a folder with vae/, or that of the autoencoder")
    posterior: str = setting(
        "sample",
        "sd3_vae: latents are drawn (sample), as released, or each is its mean",
        choices=("sample", "mean"),
    )
    use_shift_factor: bool = setting(
        False, "sd3_vae: the released pipeline ignores the folder's", binds="weights"
    )
    tile: int = setting(
        0, "sd3_vae: pixels along a side of a tile of a large image; 0: never cut", least=0
    )
    dtype: str = setting("bfloat16", "sd3_vae: of activations", choices=FLOATS)

    def __post_init__(self):
        super().__post_init__()
        if self.kind == "sd3_vae" and not self.path:
            raise InputError(
                "codec.kind is 'sd3_vae' and codec.path is empty; set it to a folder with vae/."
            )


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
        f"train, --{part}_path=FOLDER to sample.{access_advice(path)}"
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
    pretrained, encoder = [], T5Encoder(text.encoder, vocabulary)
    if text.kind == "t5":
        encoder = text_encoder_of(text, absent)
        if vocabulary > encoder.vocabulary:
            raise InputError(
                f"The tokenizer has {vocabulary} pieces, and the encoder in {text.path} knows "
                f"{encoder.vocabulary}; the tokenizer is another model's."
            )
        pretrained.append("text")
    autoencoder = None
    if codec.kind == "sd3_vae":
        autoencoder = autoencoder_of(codec, absent)
        pretrained.append("codec")
        if autoencoder.channels != model.channels:
            raise InputError(
                f"config.model.channels is {model.channels}; the autoencoder in "
                f"{codec.path} has {autoencoder.channels}, so set it to that."
            )
    return Networks(
        NextDiT(model, remat), encoder, autoencoder, tuple(pretrained), codec.posterior == "sample"
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
    """Fingerprints of the run's pretrained networks, by part."""
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
        params[part] = from_released(tensors, TENSOR_NAMES[part], shapes[part])
        if mesh is not None:
            where = jax.tree.map(lambda shape: shape.sharding, shapes[part])
            params[part] = sharded_arrays(params[part], where)
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


class Encoding(NamedTuple):
    """Encodes examples ahead of training: images as distributions of latents, prompts as tokens."""

    codec: Codec
    tokenizer: Tokenizer
    networks: Networks
    params: Mapping[str, Any]
    states: bool
    batch: int  # images, or prompts, that are encoded together

    def __call__(self, several: Sequence[SourcedExample]) -> list[SourcedExample]:
        """The examples with their images and prompts encoded."""
        images = [view for each in several for view in each.example.views if is_image(view)]
        encoded = iter(self.images(images))
        prompts = self.prompts([each.example.text for each in several])
        found = []
        for each, prompt in zip(several, prompts, strict=True):
            views = (next(encoded) if is_image(view) else view for view in each.example.views)
            example = each.example._replace(views=tuple(views), prompt=prompt)
            found.append(each._replace(example=example))
        return found

    def images(self, images: Sequence[np.ndarray]) -> list[EncodedImage]:
        """Images encoded, those of one shape together."""
        if not isinstance(self.codec, ImageCodec):
            return [EncodedImage(self.codec.encode(image), None) for image in images]
        found: dict[int, EncodedImage] = {}
        for shape in {image.shape for image in images}:
            numbers = [i for i, image in enumerate(images) if image.shape == shape]
            for part in self.batches(numbers):
                moments = self.codec.moments(np.stack([images[n] for n in part]))
                found |= dict(zip(part, map(EncodedImage, *moments), strict=True))
        return [found[i] for i in range(len(images))]

    def prompts(self, prompts: Sequence[str]) -> list[EncodedPrompt]:
        """Prompts as ids, or as states of the text encoder, of the tokens that count."""
        ids, masks = map(np.stack, zip(*map(self.tokenizer, prompts), strict=True))
        found = dict(enumerate(ids))
        for part in self.batches(range(len(ids))) if self.states else ():
            states = _states(self.networks, self.params, ids[part][:, None], masks[part][:, None])
            found |= dict(zip(part, np.asarray(states)[:, 0].astype(BFLOAT16), strict=True))
        counted = (found[i][mask] for i, mask in enumerate(masks))
        return list(map(EncodedPrompt, prompts, counted))

    def batches(self, numbers: Sequence[int]) -> Iterator[list[int]]:
        """The numbers in full batches, for one program: the last one repeats its last number."""
        for i in range(0, len(numbers), self.batch):
            part = list(numbers[i : i + self.batch])
            yield part + part[-1:] * (self.batch - len(part))


@functools.partial(jax.jit, static_argnums=0)
def _states(networks: Networks, params: Any, ids: Any, mask: Any) -> Any:
    return networks.states(params, ids, mask)


def is_image(view: Any) -> bool:
    """Whether a view is an image, not a camera."""
    return isinstance(view, np.ndarray)
