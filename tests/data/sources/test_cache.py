"""Examples encoded ahead: what a cache holds, how it is written, and runs that read it."""

import dataclasses
import hashlib
import json
import pathlib
import pickle
import re
import shutil

import ml_dtypes
import numpy as np
import pytest
from caches import CONFIG, DATA, config_with_cache, write_cache
from tiny import BlobSettings

from onediff_jax import cli
from onediff_jax.commands import encode as encode_dataset
from onediff_jax.data.batching.loader import SlotConfig
from onediff_jax.data.batching.rows import Batch
from onediff_jax.data.codecs import image_of
from onediff_jax.data.conditions.make import ConditionConfig
from onediff_jax.data.example import EncodedImage, EncodedPrompt, Example, SourcedExample
from onediff_jax.data.sources import cache
from onediff_jax.data.sources.cache import Cache, ExampleShape, encoded_example, example_bytes
from onediff_jax.data.tasks.fitting import FULL
from onediff_jax.data.text import END
from onediff_jax.errors import InputError
from onediff_jax.ops.cameras import Camera
from onediff_jax.train.config import as_dict
from onediff_jax.train.loop import train
from onediff_jax.train.prepare import open_sources, prepare
from onediff_jax.train.tune import TuneConfig

FEW = BlobSettings(4, held_out=0)
DRAWN = dataclasses.replace(
    DATA,
    tasks={"image_inpainting": 1.0, "multiview": 1.0},
    row=(SlotConfig(2, 4), SlotConfig(4, 10)),
)


def rows_of(config):
    run = prepare(config)
    return run.rows, run.assets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    config = dataclasses.replace(CONFIG, data=DRAWN)
    return write_cache(tmp_path_factory.mktemp("drawn"), config, passes=2)


def test_rows_of_a_cache_are_those_of_its_images(folder):
    (images, expected), (ahead, assets) = rows_of(CONFIG), rows_of(config_with_cache(folder))
    assert assets.vocabulary == expected.vocabulary
    for number in range(20):  # more than an epoch
        for name, one, other in zip(Batch._fields, ahead[number], images[number], strict=True):
            assert one.dtype == other.dtype, name
            if name == "latents":  # within half a unit of bfloat16's last place
                np.testing.assert_allclose(one, other, rtol=2**-8, atol=1e-6)
            else:
                np.testing.assert_array_equal(one, other, err_msg=name)


def test_a_part_is_found_by_its_name():
    part = ExampleShape("text2image", 1, 4)
    assert ExampleShape.parse("text2image-1x4") == part and str(part) == "text2image-1x4"


def test_rows_of_a_cache_travel_to_workers(folder):
    rows, _ = rows_of(config_with_cache(folder))
    before = rows[3]
    copied = pickle.loads(pickle.dumps(rows))
    assert all(map(np.array_equal, copied[3], before))


def test_every_pass_draws_conditions_anew_and_holds_each_record_once(drawn):
    source = Cache(str(drawn)).open("train")
    examples = source.examples(ExampleShape("image_inpainting", 2, 4))
    assert len(source) == 12 and len(examples) == 24
    read = [encoded_example(examples[i], 7) for i in range(24)]
    assert all(sourced.source == 7 for sourced in read)
    masked = [sourced.example.views[1].mean.tobytes() for sourced in read]
    images = [sourced.example.views[0].mean.tobytes() for sourced in read]
    assert images[:12] == images[12:] and len(set(masked)) == 24


def test_cameras_are_kept_as_they_are_and_images_decode(drawn):
    config = dataclasses.replace(CONFIG, data=DRAWN)
    source, (_, assets) = Cache(str(drawn)).open("train"), rows_of(config_with_cache(drawn, config))
    make = encode_dataset.MakeExample(
        "multiview", open_sources(DRAWN, "train")["blobs"], 0, 4, 10, 4, DRAWN.conditions
    )
    part = source.examples(ExampleShape("multiview", 4, 10))
    for number in (0, 5, 17):
        expected = make.random_map(number % 12, np.random.default_rng([config.seed, number]))
        found = encoded_example(part[number], 0).example
        for view, true in zip(found.views, expected.example.views, strict=True):
            if isinstance(true, Camera):
                assert all(map(np.array_equal, view, true))
            else:
                assert view.std is None
                shown = image_of(assets.codec.decode(view.mean))
                again = image_of(assets.codec.decode(assets.codec.encode(true)))
                assert np.abs(shown.astype(int) - again).max() <= 3


def test_held_out_records_are_encoded_once_and_read_as_validation(tmp_path):
    data = dataclasses.replace(DATA, sources={"blobs": BlobSettings(3, held_out=2)})
    folder = write_cache(tmp_path, dataclasses.replace(CONFIG, data=data), passes=2)
    for split, records, examples in (("train", 3, 6), ("validation", 2, 2)):
        source = Cache(str(folder)).open(split)
        assert len(source) == records
        assert len(source.examples(ExampleShape("text2image", 1, 4))) == examples


def test_an_example_comes_back_as_it_was_within_bfloat16():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(2, 3, 4)), rng.uniform(1e-3, 2, (2, 3, 4))
    image = EncodedImage(np.float32(mean), np.float32(std))
    states = rng.normal(size=(5, 8)).astype(ml_dtypes.bfloat16)
    example = Example("text2image", (image,), EncodedPrompt("words", states))
    found = encoded_example(example_bytes(SourcedExample(example, 0, 3), 9), 2)
    assert (found.source, found.bad_records, found.example.task) == (2, 3, "text2image")
    assert found.example.prompt.text == "words"
    assert np.array_equal(found.example.prompt.tokens, states)
    np.testing.assert_allclose(found.example.views[0].mean, mean, rtol=2**-8)
    # A logarithm of 14 at most, in units of a sixteenth, halved.
    np.testing.assert_allclose(found.example.views[0].std, std, rtol=0.02)


@pytest.mark.parametrize("after", [0, 7, 13])
def test_an_interrupted_cache_goes_on_after_the_last_whole_file(
    folder, tmp_path, monkeypatch, after
):
    written = []

    def interrupted(sourced, record):
        written.append(record)
        if len(written) > after:
            raise KeyboardInterrupt
        return example_bytes(sourced, record)

    monkeypatch.setattr(encode_dataset, "example_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_cache(tmp_path)
    there = {f: f.stat().st_mtime_ns for f in (tmp_path / "blobs").glob("*.array_record")}
    assert len(there) == {0: 0, 7: 1, 13: 3}[after]  # of files of 5, 5 and 2
    with pytest.raises(InputError, match="not complete; .* encode`, which goes on"):
        Cache(str(tmp_path / "blobs")).open("train")
    monkeypatch.setattr(encode_dataset, "example_bytes", example_bytes)
    again = write_cache(tmp_path)
    assert all(file.stat().st_mtime_ns == time for file, time in there.items())
    manifests = [json.loads((f / cache.MANIFEST).read_text()) for f in (again, folder)]
    assert manifests[0] == manifests[1]  # checksums of all files among it
    assert not list(again.glob("*.partial"))


def test_a_finished_cache_is_checked_and_what_is_deleted_made_again(folder, tmp_path):
    other = tmp_path / "blobs"
    shutil.copytree(folder, other)
    file = other / "text2image-1x4-00001.array_record"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"00001.array_record is not what manifest.json says"):
        write_cache(tmp_path)
    file.unlink()
    write_cache(tmp_path)
    for made in folder.iterdir():
        if made.name != cache.ASSETS:  # a zip file, with the time
            assert (other / made.name).read_bytes() == made.read_bytes()


def test_a_cache_is_not_continued_as_another(folder):
    with pytest.raises(InputError, match=r"plan.json: passes is 1, and 2 now; set it back"):
        write_cache(folder.parent, passes=2)
    longer = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, length=9))
    with pytest.raises(InputError, match=r"plan.text.length is 12, and 9 now"):
        write_cache(folder.parent, longer)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("codec", dict(whitening=0.5), "codec.whitening is 0.0, and 0.5 in this run"),
        ("text", dict(length=20), "text.length is 12, and 20 in this run"),
        ("data", dict(aspects="square"), "pictures.aspects is 'any', and 'square' in this run"),
        ("data", dict(enlarge=4.0), r"pictures.enlarge is 2\.0, and 4\.0 in this run"),
        ("data", dict(filter="box"), "pictures.filter is 'lanczos', and 'box' in this run"),
        (
            "data",
            dict(conditions=ConditionConfig("drawn", window=3)),
            "conditions.window is 0, and 3 in this run",
        ),
    ],
)
def test_a_cache_of_another_encoding_is_refused_before_the_first_step(
    folder, tmp_path, section, change, message
):
    config = config_with_cache(folder)
    changed = dataclasses.replace(getattr(config, section), **change)
    config = dataclasses.replace(config, **{section: changed})
    with pytest.raises(InputError, match=message) as refusal:
        train(config, tmp_path / "run")
    assert "\n" not in str(refusal.value) and "manifest.json" in str(refusal.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def changed_manifest(folder, tmp_path, change) -> pathlib.Path:
    copied = tmp_path / "changed"
    copied.mkdir()
    for file in folder.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((copied / cache.MANIFEST).read_text())
    change(manifest)
    (copied / cache.MANIFEST).write_text(json.dumps(manifest))
    return copied


def test_a_cache_of_other_encoders_is_refused(folder, tmp_path):
    other = changed_manifest(
        folder, tmp_path, lambda m: m["plan"]["codec"].update(fingerprint="0123")
    )
    with pytest.raises(InputError, match=r"codec.fingerprint is '0123', and '\w{16}' in this run"):
        rows_of(config_with_cache(other))


@pytest.mark.parametrize("size", [4000, 512 * 2**20])
def test_files_have_about_as_many_bytes_as_they_should(tmp_path, monkeypatch, size):
    monkeypatch.setattr(encode_dataset, "SHARD", size)
    made = write_cache(tmp_path, shard=0)
    manifest = json.loads((made / cache.MANIFEST).read_text())
    source = Cache(str(made)).open("train")
    for name, files in manifest["parts"].items():
        counts = [file["records"] for file in files]
        examples = source.examples(ExampleShape.parse(name))
        example = np.mean([len(data) for data in examples])
        assert sum(counts) == 12 and len(set(counts[:-1])) <= 1
        # Names of fields and the task's token, of which the estimate does not know, take some more.
        print(name, counts, example, manifest["made_with"]["shard"])
        assert counts[0] == 12 or 0.5 * size < counts[0] * example < 1.5 * size
        assert manifest["made_with"]["shard"][name] >= counts[0]
    assert size < 2**20 or counts == [12]
    write_cache(tmp_path, shard=0)  # goes on


def test_a_cache_older_than_enlarging_and_filters_was_made_with_their_defaults(folder, tmp_path):
    def older(written):
        del written["plan"]["pictures"]["enlarge"], written["plan"]["pictures"]["filter"]

    other = changed_manifest(folder, tmp_path, older)
    rows_of(config_with_cache(other))
    with pytest.raises(InputError, match=r"pictures.enlarge is 2\.0, and 4\.0 in this run"):
        rows_of(config_with_cache(other, enlarge=4.0))
    with pytest.raises(InputError, match="pictures.filter is 'lanczos', and 'bicubic' in this run"):
        rows_of(config_with_cache(other, filter="bicubic"))
    (other / cache.MANIFEST).unlink()  # not finished, and gone on with
    begun = json.loads((other / cache.PLAN).read_text())
    older(begun)
    (other / cache.PLAN).write_text(json.dumps(begun))
    other.rename(tmp_path / "blobs")
    write_cache(tmp_path)
    larger = dataclasses.replace(CONFIG, data=dataclasses.replace(DATA, enlarge=3.0))
    with pytest.raises(InputError, match=r"plan.pictures.enlarge is 2\.0, and 3\.0 now"):
        write_cache(tmp_path, larger)


def test_a_task_that_a_cache_lacks_is_refused_with_those_it_has(folder):
    config = config_with_cache(folder, row=(SlotConfig(1, 4), SlotConfig(2, 9)))
    match = "no examples of task 'depth2image' with 2 views of 9 tokens; it holds depth2image-2x10"
    with pytest.raises(InputError, match=match):
        rows_of(config)


def test_a_file_that_changed_is_refused(folder, tmp_path):
    other = changed_manifest(folder, tmp_path, lambda m: None)
    file = next(other.glob("*.array_record"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"manifest.json says \d+ bytes"):
        rows_of(config_with_cache(other))


def test_a_damaged_example_is_named_when_it_is_read(folder, tmp_path):
    other = changed_manifest(folder, tmp_path, lambda m: None)
    file = other / "text2image-1x4-00001.array_record"
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(4000)
    file.write_bytes(data)
    examples = Cache(str(other)).open("train").examples(ExampleShape("text2image", 1, 4))
    encoded_example(examples[0], 0)
    with pytest.raises(InputError, match=r"text2image-1x4-00001.* is damaged .*encode the data"):
        for number in range(5, 10):
            encoded_example(examples[number], 0)


def test_files_are_named_with_their_counts_and_checksums(folder):
    manifest = json.loads((folder / cache.MANIFEST).read_text())
    assert manifest["records"] == 12 and set(manifest["parts"]) == {
        "text2image-1x4",
        "depth2image-2x10",
    }
    for files in manifest["parts"].values():
        assert [file["records"] for file in files] == [5, 5, 2]
        for file in files:
            data = (folder / file["file"]).read_bytes()
            assert file["bytes"] == len(data)
            assert file["sha256"] == hashlib.sha256(data).hexdigest()
    codec = manifest["plan"]["codec"]
    assert (codec["kind"], codec["scale"], codec["shift"]) == ("linear", 1, 0)
    images = {"token_edge": 4, "aspects": "any", "least_full": FULL}
    assert manifest["plan"]["pictures"] == images | {"enlarge": 2.0, "filter": "lanczos"}


@pytest.mark.slow  # it trains a run
def test_a_run_that_starts_from_another_is_encoded_by_its_codec(folder, tmp_path):
    first = dataclasses.replace(CONFIG, data=dataclasses.replace(DATA, sources={"few": FEW}))
    train(first, tmp_path / "first")
    config = dataclasses.replace(CONFIG, tune=TuneConfig(start=str(tmp_path / "first")))
    other = write_cache(tmp_path / "cache", config)
    plans = [json.loads((f / cache.MANIFEST).read_text())["plan"] for f in (other, folder)]
    assert plans[0]["codec"]["fingerprint"] != plans[1]["codec"]["fingerprint"]
    rows_of(config_with_cache(other, config))
    with pytest.raises(InputError, match="codec.fingerprint is"):
        rows_of(config_with_cache(folder, config))


def config_file(tmp_path, config) -> str:
    file = tmp_path / "config.py"
    values = json.dumps(as_dict(config))
    file.write_text(
        "import json, ml_collections\n"
        f"def get_config(): return ml_collections.ConfigDict(json.loads({values!r}))"
    )
    return str(file)


def test_the_tool_says_what_it_did_and_how_fast(folder, tmp_path, capsys):
    arguments = ["encode", "--config", config_file(tmp_path, CONFIG)]
    arguments += ["--out", str(tmp_path / "out"), "--shard=5", "--batch=3"]
    assert cli.main(arguments) == 0
    told = capsys.readouterr()
    assert told.out == f"24 examples are in {tmp_path / 'out' / 'blobs'}.\n"
    assert re.search(r"blobs .*24/24.*[\d.]+ images/s", told.err)
    assert (tmp_path / "out/blobs/manifest.json").read_text() == (
        folder / "manifest.json"
    ).read_text()  # whatever the batch


@pytest.mark.parametrize(
    ("option", "status", "message"),
    [
        ("--states", 1, "--states needs text.kind 't5'"),
        ("--shard=-1", 2, "--shard=-1"),
        ("--batch=0", 2, "--batch=0"),
        ("--passes=0", 2, "--passes=0"),
        ("--config.text.lenght=3", 1, "did you mean 'length'"),
        ("--speed=3", 2, "speed"),
    ],
)
def test_mistakes_of_the_tool_are_one_line(tmp_path, capsys, option, status, message):
    arguments = ["encode", "--config", config_file(tmp_path, CONFIG), option]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == status
    told = capsys.readouterr()
    assert told.err.startswith("onediff_jax: ") and told.err.count("\n") == 1
    assert message in told.err and not (tmp_path / "out").exists()


def test_a_dropped_prompt_is_the_empty_one(folder):
    rows, _ = rows_of(config_with_cache(folder, prompt_dropout=1.0))
    text = rows[0].text
    assert (text[:, 0] == END).all() and not text[:, 1:].any()
    source = Cache(str(folder)).open("train")
    assert source.empty.tokens.tolist() == [END]


def test_a_dropped_caption_leaves_the_token_as_it_does_of_images(folder):
    data = dataclasses.replace(DATA, caption_dropout=0.5)
    (images, _), (ahead, _) = (
        rows_of(dataclasses.replace(CONFIG, data=data)),
        rows_of(config_with_cache(folder, caption_dropout=0.5)),
    )
    whole, _ = rows_of(CONFIG)
    texts = [[rows[number].text for number in range(6)] for rows in (ahead, images, whole)]
    np.testing.assert_array_equal(texts[0], texts[1])
    assert not np.array_equal(texts[0], texts[2])
    assert "bare" not in json.loads((folder / cache.MANIFEST).read_text())  # ids need none


def test_states_of_a_trained_encoder_are_not_kept(tmp_path):
    with pytest.raises(InputError, match="--states needs text.kind 't5', and it is 'trained'"):
        encode_dataset.encode(CONFIG, tmp_path, 1, True, 5)
    assert not list(tmp_path.iterdir())
