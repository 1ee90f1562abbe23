"""Released encoders in a run: read from their folders, frozen, inside the step or ahead of it."""

import dataclasses
import json
import pickle
import re
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
from drawn import drawn_params, relative_error
from pipeline import PIECES, T5_JSON, VAE, spiece_model, t5_weights, vae_weights, write_pipeline
from safetensors.numpy import load_file, save_file
from tiny import BlobSettings, tiny_config

from onediff_jax.commands import encode as encode_dataset
from onediff_jax.data.batching import loader
from onediff_jax.data.batching.loader import DataConfig, SlotConfig
from onediff_jax.data.sources.cache import Cache
from onediff_jax.data.tasks.table import bare_prompt
from onediff_jax.data.text import T5Tokenizer, t5_vocabulary
from onediff_jax.errors import InputError
from onediff_jax.ops import flow
from onediff_jax.ops.patches import patchify, unpatchify
from onediff_jax.sampling.generate import ImageCodec
from onediff_jax.train import encoders
from onediff_jax.train.assets import Assets
from onediff_jax.train.encoders import CodecConfig, TextConfig
from onediff_jax.train.prepare import prepare, training_rows
from onediff_jax.train.step import clean_latents, losses

pytest.importorskip("transformers", reason="the released tokenizer needs the t5 extra")

ROW = (SlotConfig(1, 5), SlotConfig(2, 9), SlotConfig(4, 4))
DATA = DataConfig(
    sources={"blobs": BlobSettings(12, held_out=0)},
    tasks={"text2image": 1.0, "depth2image": 1.0, "multiview": 1.0},
    row=ROW,
    aspects="square",
    prompt_dropout=0.3,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("pipeline") / "released")


@pytest.fixture(scope="module")
def config(folder):
    return tiny_config(
        data=DATA,
        text=TextConfig(kind="t5", path=str(folder), length=30, dtype="float32"),
        codec=CodecConfig(kind="sd3_vae", path=str(folder), dtype="float32"),
    )


class Prepared:
    """A run's parts, with every parameter at random."""

    def __init__(self, config):
        run = prepare(config)
        self.config, self.sources, self.assets = config, run.sources, run.assets
        self.networks, self.tokenizer = run.networks, run.tokenizer
        self.pretrained = run.pretrained_params()
        self.params = drawn_params(jax.eval_shape(self.networks.init, jax.random.key(0)))
        self.codec = run.codec(self.pretrained)

    @property
    def rows(self):
        return training_rows(self.config, self.sources, self.assets, self.tokenizer)


@pytest.fixture(scope="module")
def prepared(config):
    return Prepared(config)


def networks_of(config, prepared):
    return prepare(config, prepared.assets._replace(fingerprints={})).networks


def batch_of(rows, first=0, count=4):
    return loader.MakeBatch(rows, count, tuple(range(count)))(first)


def loss(prepared, batch, rows) -> float:
    """The mean error over valid tokens, the same noise for every way to make the batch."""
    every, numbers = {**prepared.params, **prepared.pretrained}, jnp.arange(len(batch.task))
    errors, _ = jax.jit(
        lambda batch: losses(
            prepared.networks,
            every,
            batch,
            numbers,
            jax.random.key(3),
            rows.layout,
            flow.FlowConfig(),
        )
    )(batch)
    return float(np.asarray(errors)[np.asarray(batch.token_mask)].mean())


# --- what is read ---------------------------------------------------------------------------------


def test_frozen_parameters_are_the_tensors_of_the_folder(prepared):
    text, codec = prepared.pretrained["text"], prepared.pretrained["codec"]
    t5, vae = t5_weights(), vae_weights()
    assert np.array_equal(text["embedding"], t5["shared.weight"])
    assert np.array_equal(
        text["layers"]["wo"]["kernel"][1], t5["encoder.block.1.layer.1.DenseReluDense.wo.weight"].T
    )
    kernel = vae["encoder.conv_in.weight"].transpose(2, 3, 1, 0)
    assert np.array_equal(codec["encoder"]["conv_in"]["kernel"], kernel)
    assert prepared.networks.codec.config == dataclasses.replace(VAE, dtype="float32")
    assert prepared.networks.text.vocabulary == PIECES


def test_the_trained_state_knows_nothing_of_frozen_networks(prepared):
    assert set(jax.eval_shape(prepared.networks.init, jax.random.key(0))) == {"denoiser"}


def test_matrices_of_t5_are_in_bfloat16_and_its_norms_in_float32(prepared, config):
    text = dataclasses.replace(config.text, dtype="bfloat16")
    params = encoders.pretrained_params(prepared.networks, text, config.codec, None, ("text",))
    assert set(params) == {"text"}
    dtypes = {
        jax.tree_util.keystr(path): leaf.dtype.name
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    halves = {name for name, dtype in dtypes.items() if dtype == "bfloat16"}
    assert halves == {name for name in dtypes if "kernel" in name or "embedding" in name}


def test_a_fingerprint_tells_weights_apart_and_not_files(folder, config, tmp_path):
    def moved(change) -> dict[str, str]:
        other = tmp_path / change.__name__
        shutil.copytree(folder, other)
        file = other / "text_encoder" / "model.safetensors"
        tensors = load_file(file)
        save_file(change(tensors), file, metadata={"format": "np"})
        text = dataclasses.replace(config.text, path=str(other / "text_encoder"))
        return encoders.fingerprints_of(text, config.codec)

    def same(tensors):
        return dict(reversed(tensors.items()))

    def changed(tensors):
        name = "encoder.block.0.layer.0.SelfAttention.q.weight"
        return tensors | {name: tensors[name] + np.float32(1e-3)}

    expected = encoders.fingerprints_of(config.text, config.codec)
    assert set(expected) == {"text", "codec"}
    assert moved(same) == expected
    assert moved(changed)["text"] != expected["text"]
    text = dataclasses.replace(config.text, path=str(tmp_path / "changed"))
    with pytest.raises(InputError, match=r"config.text.path is .*fingerprint .* made with \w{16}"):
        encoders.refuse_others(text, config.codec, expected, "runs/first")
    encoders.refuse_others(config.text, config.codec, expected, "runs/first")


def test_a_folder_that_has_moved_away_is_told_how_to_be_found(config):
    text = dataclasses.replace(config.text, path="/nowhere")
    with pytest.raises(InputError, match=r"--config.text.path=FOLDER to train, --text_path=FOLDER"):
        encoders.fingerprints_of(text, config.codec)


def test_assets_of_released_encoders_are_kept_and_come_back(prepared):
    found = Assets.from_arrays(prepared.assets.arrays)
    assert found == prepared.assets
    assert set(found.fingerprints) == {"text", "codec"} and found.codec.factor == VAE.factor


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TextConfig(kind="t5"), "text.path is empty"),
        (lambda: CodecConfig(kind="sd3_vae"), "codec.path is empty"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_latents_that_the_denoiser_does_not_take_are_refused(prepared, config):
    model = dataclasses.replace(config.model, channels=16)
    with pytest.raises(InputError, match="model.channels is 16; the autoencoder in .* has 8"):
        networks_of(dataclasses.replace(config, model=model), prepared)


def test_a_tokenizer_of_more_pieces_than_the_encoder_knows_is_refused(prepared, config, tmp_path):
    other = shutil.copytree(config.text.path, tmp_path / "other")
    file, name = other / "text_encoder" / "model.safetensors", "shared.weight"
    tensors = load_file(file)
    save_file(tensors | {name: tensors[name][:150]}, file)
    (other / "text_encoder" / "config.json").write_text(json.dumps(T5_JSON | {"vocab_size": 150}))
    text = dataclasses.replace(config.text, path=str(other))
    with pytest.raises(InputError, match=r"tokenizer has \d+ pieces, and the encoder .* knows 150"):
        networks_of(dataclasses.replace(config, text=text), prepared)


def test_images_of_any_aspect_cannot_be_encoded_inside_the_step(config):
    data = dataclasses.replace(config.data, aspects="any")
    with pytest.raises(InputError, match="set data.aspects to 'square', or encode the data set"):
        Prepared(dataclasses.replace(config, data=data)).rows  # noqa: B018


# --- the tokenizer --------------------------------------------------------------------------------

PROMPTS = (
    "a small box",
    "[[depth2image]] <#00FFFF cyan mask: ball> <#FFA500 orange mask: box> a box",
    "<<item: ball> >a  large\nbox ü",
    "",
)


def test_prompts_are_the_pieces_of_sentencepiece(folder):
    tokens = T5Tokenizer(t5_vocabulary(folder / "tokenizer"), 60)
    reference = sentencepiece.SentencePieceProcessor(model_proto=spiece_model())
    copied = pickle.loads(pickle.dumps(tokens))
    for prompt in PROMPTS:
        ids, mask = tokens(prompt)
        assert ids[mask].tolist() == [*reference.encode(prompt), 1] and not ids[~mask].any()
        assert np.array_equal(copied(prompt)[0], ids)
    assert tokens(PROMPTS[1])[0].tolist().count(2) == 2  # `<` is unknown


def test_the_first_prompt_that_is_cut_is_told_with_what_it_loses(folder):
    tokens = T5Tokenizer(t5_vocabulary(folder / "tokenizer"), 8)
    prompt = "make the large box bright <#00FFFF cyan mask: ball>"
    reference = sentencepiece.SentencePieceProcessor(model_proto=spiece_model())
    with pytest.warns(UserWarning, match="text.length is 8") as told:
        ids, mask = tokens(prompt)
        tokens(prompt)
    assert len(told) == 1 and mask.all() and ids[-1] == 1
    lost = re.search(r"loses its end: '(.*)'", str(told[0].message))[1]
    assert f"{reference.decode(ids[:-1].tolist())}{lost}".split() == prompt.split()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        T5Tokenizer(tokens.model, 8)("a box")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"no T5 tokenizer; expected spiece.model or tokenizer.json"
    ):
        t5_vocabulary(tmp_path)


# --- inside the step, and ahead of it -------------------------------------------------------------


def test_images_travel_as_pixels_and_rays_as_latents(prepared):
    rows = prepared.rows
    row, placed = rows[0], rows.examples(0)
    assert row.pixels.shape == (rows.layout.tokens, 3 * 4**2)
    for _, first, each in placed:
        for index, view in enumerate(each.example.views):
            tokens = (rows.layout.view_of_token == first + index) & row.token_mask
            image = isinstance(view, np.ndarray)
            assert row.encoded[first + index] == (not image)
            if image:
                side = int(tokens.sum() ** 0.5)
                assert np.array_equal(unpatchify(row.pixels[tokens], side, 4), view)
            assert bool(row.latents[tokens].any()) == (not image)


def test_the_step_encodes_every_image_as_the_autoencoder_alone_does(prepared):
    rows = prepared.rows
    batch = jax.tree.map(jnp.asarray, batch_of(rows))
    networks = prepared.networks._replace(sampled=False)
    found = clean_latents(
        networks, prepared.pretrained, batch, jnp.arange(4), jax.random.key(0), rows.layout
    )
    for number in range(4):
        for _, first, each in rows.examples(number):
            for index, view in enumerate(each.example.views):
                of_view = rows.layout.view_of_token == first + index
                tokens = of_view & batch.token_mask[number]
                if isinstance(view, np.ndarray):
                    expected = patchify(prepared.codec.moments(view[None])[0][0], 2)
                else:
                    expected = batch.latents[number][tokens]
                assert relative_error(found[number][tokens], expected) < 1e-5
    padding = np.asarray(found)[~batch.token_mask]
    assert len(padding) and not padding.any()


def test_latents_are_drawn_with_the_deviations_of_their_images(prepared):
    rows = prepared.rows
    batch, count = batch_of(rows, count=1), 300
    repeated = jax.tree.map(lambda x: np.repeat(x, count, 0), batch)
    every, key = jnp.arange(count), jax.random.key(0)
    draw = jax.jit(
        lambda batch: clean_latents(
            prepared.networks, prepared.pretrained, batch, every, key, rows.layout
        )
    )
    mean, std = prepared.networks.encoded(
        prepared.pretrained, jnp.asarray(batch.pixels), rows.layout
    )
    drawn = np.asarray(draw(repeated))
    images = ~batch.encoded[0][rows.layout.view_of_token] & batch.token_mask[0]
    scaled = (drawn[:, images] - mean[0][images]) / std[0][images]
    assert abs(scaled.mean()) < 0.02 and abs(scaled.std() - 1) < 0.02
    noise = flow.draw(key, every, rows.layout, drawn.shape[-1], flow.FlowConfig())[1]
    both = np.corrcoef(scaled.ravel(), np.asarray(noise)[:, images].ravel())[0, 1]
    assert abs(both) < 0.02  # not the noise that is added to them
    rays = batch.encoded[0][rows.layout.view_of_token]
    assert np.array_equal(drawn[:, rays], np.repeat(batch.latents, count, 0)[:, rays])


@pytest.fixture(scope="module")
def caches(config, tmp_path_factory):
    """Caches of the same data: of ids, and of states."""
    found = {}
    for states in (False, True):
        out = tmp_path_factory.mktemp("caches") / str(states)
        encode_dataset.encode(config, out, 1, states, 7)
        found[states] = out / "blobs"
    return found


@pytest.mark.parametrize("states", [False, True])
def test_a_batch_gives_the_same_loss_encoded_ahead_or_inside_the_step(prepared, caches, states):
    """With the posterior's mean, on examples that are functions of their record."""
    data = dataclasses.replace(DATA, tasks={"text2image": 1.0, "depth2image": 1.0}, row=ROW[:2])
    codec = dataclasses.replace(prepared.config.codec, posterior="mean")
    inside = Prepared(dataclasses.replace(prepared.config, data=data, codec=codec))
    data = dataclasses.replace(data, sources={"blobs": Cache(str(caches[states]))})
    ahead = Prepared(dataclasses.replace(prepared.config, data=data, codec=codec))
    batches = [batch_of(each.rows) for each in (inside, ahead)]
    assert batches[0].pixels.shape[-1] and not batches[1].pixels.shape[-1]
    assert not batches[1].deviations.shape[-1]
    assert (batches[1].text.ndim == 4) == states
    assert np.array_equal(*(batch.text_mask for batch in batches))
    found, expected = (loss(inside, batch, inside.rows) for batch in (batches[1], batches[0]))
    assert found == pytest.approx(expected, rel=1e-3) and found != expected


def test_a_cache_keeps_the_distribution_that_the_step_draws_from(prepared, caches):
    data = dataclasses.replace(DATA, sources={"blobs": Cache(str(caches[True]))})
    rows = Prepared(dataclasses.replace(prepared.config, data=data)).rows
    batch = batch_of(rows)
    images = batch.deviations.any(-1)
    assert batch.deviations.shape == batch.latents.shape and images.any()
    draw = clean_latents(
        prepared.networks, {}, batch, jnp.arange(4), jax.random.key(0), rows.layout
    )
    moved = np.asarray(draw != batch.latents).any(-1)
    assert np.array_equal(moved, images) and not (images & ~batch.token_mask).any()


def test_states_of_the_empty_prompt_stand_for_dropped_ones(prepared, caches):
    data = dataclasses.replace(
        DATA, sources={"blobs": Cache(str(caches[True]))}, prompt_dropout=1.0
    )
    row = Prepared(dataclasses.replace(prepared.config, data=data)).rows[0]
    ids, mask = map(jnp.asarray, prepared.tokenizer(""))
    expected = prepared.networks.states(prepared.pretrained, ids[None, None], mask[None, None])[
        0, 0
    ]
    assert row.text_mask.sum(-1).tolist() == [1] * len(row.text_mask)
    assert (
        relative_error(row.text[:, 0].astype(np.float32), np.repeat(expected[:1], len(row.text), 0))
        < 4e-3
    )
    assert not row.text[:, 1:].any()


def test_states_without_caption_are_kept_of_every_part(prepared, caches, tmp_path):
    data = dataclasses.replace(
        DATA, sources={"blobs": Cache(str(caches[True]))}, caption_dropout=1.0, prompt_dropout=0.0
    )
    config = dataclasses.replace(prepared.config, data=data)
    rows = Prepared(config).rows
    for number in range(4):
        row = rows[number]
        for place, _, (example, _, _) in rows.examples(number):
            told = prepared.tokenizer(bare_prompt(example.task, len(example.views)))
            ids, mask = (jnp.asarray(each)[None, None] for each in told)
            expected = prepared.networks.states(prepared.pretrained, ids, mask)[0, 0][told[1]]
            assert np.array_equal(row.text_mask[place], told[1])
            found = row.text[place].astype(np.float32)
            assert relative_error(found[told[1]], expected) < 4e-3 and not found[~told[1]].any()
    older = shutil.copytree(caches[True], tmp_path / "older")
    manifest = json.loads((older / "manifest.json").read_text())
    del manifest["bare"]
    (older / "manifest.json").write_text(json.dumps(manifest))
    data = dataclasses.replace(data, sources={"blobs": Cache(str(older))})
    with pytest.raises(InputError, match=r"caption_dropout is 1\.0, and .*older holds no sta"):
        Prepared(dataclasses.replace(config, data=data)).rows  # noqa: B018
    data = dataclasses.replace(data, caption_dropout=0.0)
    Prepared(dataclasses.replace(config, data=data)).rows[0]


@pytest.mark.parametrize("sampled", [False, True])
def test_encoded_images_and_others_stand_in_one_batch(prepared, caches, sampled):
    """Each is read, or encoded here; its latents are drawn, or its means, by where it is from."""
    sources = {"pictures": BlobSettings(12), "cache": Cache(str(caches[False]))}
    data = dataclasses.replace(DATA, sources=sources, tasks={"depth2image": 1.0}, row=ROW[1:2])
    posterior = "sample" if sampled else "mean"
    codec = dataclasses.replace(prepared.config.codec, posterior=posterior)
    mixed = Prepared(dataclasses.replace(prepared.config, data=data, codec=codec))
    rows = mixed.rows
    batch = batch_of(rows, count=8)
    of_images = batch.source[:, 0] == 0
    assert 0 < of_images.sum() < 8
    assert np.array_equal(batch.encoded.all(-1), ~of_images) and not batch.encoded[of_images].any()
    key, numbers = jax.random.key(0), jnp.arange(8)
    clean = clean_latents(
        mixed.networks,
        mixed.pretrained,
        jax.tree.map(jnp.asarray, batch),
        numbers,
        key,
        rows.layout,
    )
    mean, std = mixed.networks.encoded(mixed.pretrained, jnp.asarray(batch.pixels), rows.layout)
    here = of_images[:, None, None]
    expected = np.where(here, mean, batch.latents)
    if sampled:
        noise = flow.posterior_noise(key, numbers, rows.layout, expected.shape[-1])
        expected += noise * np.where(here, std, batch.deviations)
    mask = batch.token_mask
    assert relative_error(clean[mask], expected[mask]) < 1e-5


def test_caches_with_states_and_others_do_not_mix(prepared, caches):
    sources = {name: Cache(str(caches[name == "states"])) for name in ("ids", "states")}
    data = dataclasses.replace(DATA, sources=sources)
    with pytest.raises(InputError, match="some are caches with states of prompts"):
        Prepared(dataclasses.replace(prepared.config, data=data)).rows  # noqa: B018


def test_a_cache_of_another_encoder_is_refused(prepared, caches, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    file = tmp_path / "other" / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)
    codec = dataclasses.replace(prepared.config.codec, path=str(tmp_path / "other"))
    data = dataclasses.replace(DATA, sources={"blobs": Cache(str(caches[True]))})
    config = dataclasses.replace(prepared.config, codec=codec, data=data)
    with pytest.raises(InputError, match="codec.fingerprint is .* in this run"):
        Prepared(config).rows  # noqa: B018


# --- sampling -------------------------------------------------------------------------------------


def test_the_codec_scales_as_the_released_pipeline_does(prepared):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
    posterior = posterior_of(prepared, image)
    mean, std = prepared.codec.moments(image[None])
    np.testing.assert_allclose(mean[0], 1.5305 * posterior.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std[0], 1.5305 * np.exp(posterior.log_variance / 2), rtol=1e-5)
    codec = ImageCodec(prepared.networks.codec, prepared.pretrained["codec"], sampled=True)
    drawn = codec.encode(image)
    assert np.array_equal(drawn, codec.encode(image))
    scaled = (drawn - mean[0]) / std[0]
    assert abs(scaled.std() - 1) < 0.2
    alone = ImageCodec(prepared.networks.codec, prepared.pretrained["codec"], sampled=False)
    assert np.array_equal(alone.encode(image), mean[0])
    decoded = prepared.networks.codec.decode(
        prepared.pretrained["codec"], jnp.asarray(mean) / 1.5305
    )
    np.testing.assert_allclose(codec.decode(mean), decoded, rtol=1e-4, atol=1e-4)


def test_the_shift_is_left_out_unless_the_run_asks_for_it(prepared, config):
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    asked = dataclasses.replace(config.codec, use_shift_factor=True)
    autoencoder, pretrained = encoders.autoencoder_of(asked), prepared.pretrained["codec"]
    shifted = ImageCodec(autoencoder, pretrained, sampled=False).encode(image)
    mean = posterior_of(prepared, image).mean
    np.testing.assert_allclose(shifted, 1.5305 * (mean - 0.0609), rtol=1e-4, atol=1e-5)
    decoded = ImageCodec(autoencoder, pretrained, sampled=False).decode(shifted)
    alone = ImageCodec(prepared.networks.codec, pretrained, sampled=False)
    np.testing.assert_allclose(decoded, alone.decode(alone.encode(image)), rtol=1e-4, atol=1e-4)


def test_large_images_are_cut_into_tiles_where_the_run_asks_for_it(prepared, config):
    image = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    autoencoder = encoders.autoencoder_of(dataclasses.replace(config.codec, tile=16))
    tiled = ImageCodec(autoencoder, prepared.pretrained["codec"], sampled=False).encode(image)
    alone = ImageCodec(prepared.networks.codec, prepared.pretrained["codec"], sampled=False)
    assert relative_error(tiled[:6, :6], alone.encode(image[:16, :16])[:6, :6]) < 1e-5
    assert relative_error(tiled, alone.encode(image)) > 1e-3  # norms and attention see less


def posterior_of(prepared, image):
    pixels = jnp.float32(image) / 127.5 - 1
    return prepared.networks.codec.encode(prepared.pretrained["codec"], pixels)
