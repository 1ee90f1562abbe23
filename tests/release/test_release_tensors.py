"""Folders of safetensors: what is read equals what the library wrote; what is wrong is named."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save, save_file

from onediff_jax.errors import InputError
from onediff_jax.release.tensors import read_tensors

NAME = "diffusion_pytorch_model.safetensors"
DRAW = np.random.default_rng(0)
TENSORS = {
    "a.weight": DRAW.standard_normal((3, 5)).astype(np.float32),
    "a.bias": DRAW.standard_normal(5).astype(np.float16),
    "b.weight": DRAW.standard_normal((2, 3, 4)).astype(ml_dtypes.bfloat16),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(7, np.float32),
}


def refusal(folder):
    """The one line with which a folder is refused."""
    with pytest.raises(InputError) as caught:
        {name: np.asarray(tensor) for name, tensor in read_tensors(folder).items()}
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sharded(folder, tensors=TENSORS, count=2):
    """The tensors in shards, and where each is."""
    names = [f"diffusion_pytorch_model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    places = {name: names[i % count] for i, name in enumerate(tensors)}
    for part in names:
        save_file({n: t for n, t in tensors.items() if places[n] == part}, folder / part)
    index(folder, places)
    return places


def index(folder, places):
    (folder / f"{NAME}.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize(
    "name", [NAME, "model.safetensors", "model.fp16.safetensors", "shards of an index"]
)
def test_tensors_are_those_that_the_library_wrote(tmp_path, name):
    if name.startswith("shards"):
        sharded(tmp_path)
    else:
        save_file(TENSORS, tmp_path / name, {"format": "pt"})
    found = read_tensors(tmp_path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in found.items():
        read, expected = np.asarray(tensor), TENSORS[name]
        assert (tensor.shape, tensor.dtype) == (read.shape, read.dtype)
        assert (read.shape, read.dtype) == (expected.shape, expected.dtype)
        assert read.tobytes() == expected.tobytes()


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    save_file(TENSORS, tmp_path / NAME)
    found = read_tensors(tmp_path)
    data = (tmp_path / NAME).read_bytes()
    place = data.rindex(TENSORS["a.weight"].tobytes())
    (tmp_path / NAME).write_bytes(data[:place] + bytes(60) + data[place + 60 :])
    assert not np.asarray(found["a.weight"]).any()
    (tmp_path / NAME).write_bytes(data[: place + 20])
    with pytest.raises(InputError, match=r"a.weight: expected 60 bytes, found 20; .*changed"):
        np.asarray(found["a.weight"])


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path, size):
    data = save(TENSORS)
    (tmp_path / NAME).write_bytes(data[:size])
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / NAME}: ") and "found" in message
    (tmp_path / NAME).write_bytes(data + b"more")
    assert f"expected {len(data)} bytes by its header, found {len(data) + 4}" in refusal(tmp_path)


def entry(**changes):
    return {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | changes


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"a": entry(dtype="I64")}, "a: expected F32, F16, BF16, found 'I64'"),
        ({"a": entry(shape=[2, 4])}, "a: data_offsets: expected 32 bytes for F32 [2, 4]"),
        ({"a": entry(shape=[-2, -3])}, "a: shape: expected sizes, found [-2, -3]"),
        ({"a": entry(shape=[2, True])}, "a: shape: expected sizes, found [2, True]"),
        ({"a": entry(data_offsets=[0])}, "a: data_offsets: expected 24 bytes"),
        ({"a": entry(data_offsets=[4, 28])}, "a: data_offsets: expected a start at 0, found 4"),
        ({"a": entry(data_offsets="0")}, "a: data_offsets: expected sizes, found '0'"),
        ({"a": entry(), "b": entry()}, "b: data_offsets: expected a start at 24, found 0"),
        ({"a": {"dtype": "F32"}}, "a: expected dtype, shape, data_offsets, found {'dtype'"),
        ({"a": 3}, "a: expected dtype, shape, data_offsets, found 3"),
        ({}, "expected 10 bytes by its header, found 34"),
        ([], "header: expected an object in braces, found b'[]'"),
        ("{", "header: expected an object"),
        (b"{{", "header: expected JSON, found b'{{'"),
        (b"\xff{", "header: expected JSON"),
    ],
)
def test_a_tampered_header_is_refused_as_the_library_refuses_it(tmp_path, header, said):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (tmp_path / NAME).write_bytes(struct.pack("<Q", len(text)) + text + bytes(24))
    assert f"{NAME}: {said}" in refusal(tmp_path)
    if "I64" not in said:  # a type that the library knows
        with pytest.raises((SafetensorError, TypeError)):
            safe_open(tmp_path / NAME, "np")


def test_whatever_byte_of_a_header_changes_the_library_and_we_agree(tmp_path):
    data, draw = save(TENSORS), np.random.default_rng(0)
    length = 8 + int.from_bytes(data[:8], "little")
    agreed = {True: 0, False: 0}
    for _ in range(300):
        place, byte = draw.integers(length), bytes([draw.integers(32, 127)])
        (tmp_path / NAME).write_bytes(data[:place] + byte + data[place + 1 :])
        try:
            with safe_open(tmp_path / NAME, "np") as file:
                kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
                accepted = kinds <= {"F32", "F16", "BF16"}
        except SafetensorError:
            accepted = False
        if accepted:
            read_tensors(tmp_path)
        else:
            refusal(tmp_path)
        agreed[accepted] += 1
    assert min(agreed.values()) > 20


def test_shards_hold_what_their_index_says(tmp_path):
    places = sharded(tmp_path)
    first, second = sorted(set(places.values()))
    index(tmp_path, places | {"a.bias": first})
    assert f"{first}: a.bias: {NAME}.index.json expected it in {first}" in refusal(tmp_path)
    index(tmp_path, {n: place for n, place in places.items() if n != "a.bias"})
    assert f"{second}: a.bias: {NAME}.index.json expected it in no file" in refusal(tmp_path)
    index(tmp_path, places)
    (tmp_path / second).unlink()
    assert f"{second} is missing" in refusal(tmp_path)
    for wrong, said in (
        ({"weight_map": places | {"a.bias": "../outside"}}, "a.bias: expected a file of this"),
        ({"weight_map": places | {"a.bias": 3}}, "a.bias: expected a file of this folder, found 3"),
        ({"weight_map": {}}, "weight_map: expected files of tensors, found {}"),
        ({}, "weight_map: expected files of tensors, found None"),
        ([], "expected an object"),
    ):
        (tmp_path / f"{NAME}.index.json").write_text(json.dumps(wrong))
        assert said in refusal(tmp_path)


class Bomb:
    """What a pickle must never get to do."""

    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path):
    import pickle

    for name in ("diffusion_pytorch_model.bin", "model.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        message = refusal(tmp_path)
        assert f"{name} is a pickle" in message and "python -c '" in message
        (tmp_path / name).unlink()
    (tmp_path / NAME).write_bytes(pickle.dumps(Bomb()))
    assert "cut off or of another kind" in refusal(tmp_path)


def test_the_way_to_convert_a_pickle_works(tmp_path):
    torch = pytest.importorskip("torch")
    import subprocess
    import sys

    torch.save({"w": (w := torch.randn(2, 3)), "tied": w}, tmp_path / "model.bin")
    said = refusal(tmp_path)
    program = said.split("python -c '")[1].split("'")[0]
    command = [sys.executable, "-c", program, *said.rsplit("' ", 1)[1].split()]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert np.array_equal(np.asarray(read_tensors(tmp_path)["tied"]), w.numpy())


def test_a_folder_without_one_set_of_weights_is_refused(tmp_path):
    assert "holds no weights; expected diffusion_pytorch_model.safetensors" in refusal(tmp_path)
    assert "nothing is no folder" in refusal(tmp_path / "nothing")
    for variant in ("fp16", "bf16"):
        save_file(TENSORS, tmp_path / f"model.{variant}.safetensors")
    message = refusal(tmp_path)
    assert "model.bf16.safetensors, model.fp16.safetensors; keep one" in message
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert read_tensors(tmp_path)["a.bias"].file.name == "model.safetensors"
