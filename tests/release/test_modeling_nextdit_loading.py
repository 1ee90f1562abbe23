"""Folders that the PyTorch module reads, and what it says of those it cannot."""

import json

import pytest
from released import TINY, inputs, modeling, network, torch
from safetensors.torch import save_file

WEIGHTS = "diffusion_pytorch_model.safetensors"


def write(folder, tensors, config=TINY, shards=1):
    """A folder as diffusers writes it, whole or in shards."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / WEIGHTS)
        return
    names = [f"part-{i}.safetensors" for i in range(shards)]
    places = {name: names[i % shards] for i, name in enumerate(tensors)}
    for part in names:
        save_file({n: t for n, t in tensors.items() if places[n] == part}, folder / part)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": places}))


def refusal(folder):
    """The one line with which a folder is refused."""
    with pytest.raises(ValueError) as caught:
        modeling.NextDiT.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("inside", ["", "transformer"])
def test_a_folder_is_read_back(tmp_path, shards, inside):
    model, arguments = network(torch.float32), inputs(torch.float32)
    write(tmp_path / inside, model.state_dict(), shards=shards)
    found = modeling.NextDiT.from_pretrained(str(tmp_path))
    assert torch.equal(found(*arguments), model(*arguments)) and not found.training
    half = modeling.NextDiT.from_pretrained(tmp_path, dtype=torch.bfloat16, device="cpu")
    assert {values.dtype for values in half.state_dict().values()} == {torch.bfloat16}


def test_a_stored_type_is_kept_and_a_mixture_gets_one_that_holds_all(tmp_path):
    tensors = network(torch.bfloat16).state_dict()
    write(tmp_path, tensors)
    found = modeling.NextDiT.from_pretrained(tmp_path)
    assert {values.dtype for values in found.state_dict().values()} == {torch.bfloat16}
    tensors["x_embedder.bias"] = tensors["x_embedder.bias"].half()
    write(tmp_path, tensors)
    found = modeling.NextDiT.from_pretrained(tmp_path)
    assert {values.dtype for values in found.state_dict().values()} == {torch.float32}


def test_one_line_names_every_tensor_that_does_not_fit(tmp_path):
    tensors = network(torch.float32).state_dict()
    del tensors["layers.1.attention.gate"], tensors["y_embedder.0.bias"]
    tensors["layers.0.attention.wq.bias"] = torch.zeros(96)
    tensors["x_embedder.weight"] = torch.zeros(96, 64)
    tensors["layers.0.ffn_norm1.weight"] = torch.ones(96, dtype=torch.int64)
    write(tmp_path, tensors)
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path}: 5 tensors do not fit: {WEIGHTS}: ")
    for fault in [
        "layers.1.attention.gate: expected [8], found nothing",
        "y_embedder.0.bias: expected [10], found nothing",
        "layers.0.attention.wq.bias: expected nothing, found [96]",
        "x_embedder.weight: expected [96, 16], found [96, 64]",
        "layers.0.ffn_norm1.weight: expected [96], found I64",
    ]:
        assert f"{WEIGHTS}: {fault}" in message


def test_shards_hold_what_their_index_says(tmp_path):
    tensors = network(torch.float32).state_dict()
    write(tmp_path, tensors, shards=2)
    index = tmp_path / f"{WEIGHTS}.index.json"
    places = json.loads(index.read_text())["weight_map"]
    moved = {"part-0.safetensors": "part-1.safetensors", "part-1.safetensors": "part-0.safetensors"}
    name = "final_layer.linear.bias"
    wrong = places | {name: moved[places[name]]}
    index.write_text(json.dumps({"weight_map": wrong}))
    message = refusal(tmp_path)
    assert f"{wrong[name]}: {name}: expected [16], found nothing" in message
    assert f"{places[name]}: {name}: expected nothing, found [16]" in message
    index.write_text(json.dumps({"weight_map": {n: p for n, p in places.items() if n != name}}))
    assert f"{index.name}: {name}: expected [16], found nothing" in refusal(tmp_path)
    index.write_text(json.dumps({"weight_map": places}))
    (tmp_path / "part-1.safetensors").unlink()
    assert "part-1.safetensors: cannot be used" in refusal(tmp_path)
    write(tmp_path, tensors)  # an index may outlive its shards
    modeling.NextDiT.from_pretrained(tmp_path)


def test_what_cannot_be_read_is_named(tmp_path):
    write(tmp_path, network(torch.float32).state_dict())
    weights, config = tmp_path / WEIGHTS, tmp_path / "config.json"
    whole = weights.read_bytes()
    for size in (0, 5, 300, len(whole) - 1):
        weights.write_bytes(whole[:size])
        assert refusal(tmp_path).startswith(f"{weights}: cannot be used: SafetensorError")
    weights.unlink()
    torch.save({}, tmp_path / "diffusion_pytorch_model.bin")  # is not what we read
    assert refusal(tmp_path).startswith(f"{weights}: cannot be used: FileNotFoundError")
    weights.write_bytes(whole)
    for text, named in [
        ("{", "JSONDecodeError"),
        ("[]", "mapping"),
        (json.dumps({k: v for k, v in TINY.items() if k != "depth"}), "'depth'"),
        (json.dumps(TINY | {"depth": "two"}), "'str'"),
        (json.dumps(TINY | {"num_heads": 0}), "ZeroDivisionError"),
        (json.dumps(TINY | {"num_heads": 5}), "num_heads=5"),
    ]:
        config.write_text(text)
        message = refusal(tmp_path)
        assert message.startswith(f"{config}: cannot be used") and named in message
    config.unlink()
    assert refusal(tmp_path).startswith(f"{config}: cannot be used: FileNotFoundError")
