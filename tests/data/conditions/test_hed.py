import numpy as np
import pytest
from safetensors.numpy import save_file

from onediff_jax.data.conditions import hed
from onediff_jax.errors import InputError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def weights(monkeypatch) -> dict[str, np.ndarray]:
    """Random weights of a narrow network, scaled so that no layer dies or grows."""
    monkeypatch.setattr(hed, "_WIDTHS", (3, 4, 5, 4, 3))
    draw = rng(1)
    return {
        name: draw.normal(0, 1 / max(1, np.prod(shape[:-1])) ** 0.5, shape).astype(np.float32)
        for name, shape in hed._shapes().items()
    }


def test_the_network_has_the_published_number_of_parameters():
    counts = {name: int(np.prod(shape)) for name, shape in hed._shapes().items()}
    blocks = sum(count for name, count in counts.items() if name.startswith("block"))
    assert blocks == 14_714_688  # VGG16 without its top
    assert sum(counts.values()) == blocks + (64 + 128 + 256 + 512 + 512 + 5) + (5 + 1)


def literal_convolution(x, kernel, bias):
    height, width, _ = x.shape
    found = np.zeros((height, width, kernel.shape[-1]))
    for row in range(height):
        for column in range(width):
            total = bias.astype(np.float64)
            for i in (-1, 0, 1):
                for j in (-1, 0, 1):
                    if 0 <= row + i < height and 0 <= column + j < width:
                        total = total + x[row + i, column + j] @ kernel[i + 1, j + 1]
            found[row, column] = total
    return found


def literal_pooling(x):
    height, width, channels = x.shape
    found = np.zeros((-(-height // 2), -(-width // 2), channels))
    for row in range(found.shape[0]):
        for column in range(found.shape[1]):
            patch = x[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            found[row, column] = patch.max((0, 1))
    return found


def literal_enlargement(side, height, width):
    """Bilinear between pixel centres, the border's value beyond them."""
    h, w = side.shape
    columns = [
        np.interp((np.arange(width) + 0.5) * w / width - 0.5, np.arange(w), row) for row in side
    ]
    rows = (np.arange(height) + 0.5) * h / height - 0.5
    return np.stack([np.interp(rows, np.arange(h), c) for c in np.transpose(columns)], 1)


def literal_edges(image, weights):
    x = image.astype(np.float64) - (122.67892, 116.66877, 104.00699)
    logits = float(weights["fusion/bias"])
    for block, count in enumerate((2, 2, 3, 3, 3), start=1):
        x = literal_pooling(x) if block > 1 else x
        for number in range(1, count + 1):
            name = f"block{block}/convolution{number}"
            x = literal_convolution(x, weights[f"{name}/kernel"], weights[f"{name}/bias"])
            x = np.maximum(x, 0)
        side = (x * weights[f"side{block}/kernel"]).sum(-1) + weights[f"side{block}/bias"]
        share = weights["fusion/kernel"][block - 1]
        logits = logits + share * literal_enlargement(side, *image.shape[:2])
    return 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize("size", [(16, 16), (9, 21), (1, 5)])
def test_the_forward_pass_is_the_published_one_written_out(weights, size):
    image = rng(2).integers(0, 256, (*size, 3), dtype=np.uint8)
    weights = {n: w / (60 if n == "block1/convolution1/kernel" else 1) for n, w in weights.items()}
    weights = {n: np.asarray(w, np.float32) for n, w in weights.items()}
    expected = literal_edges(image, weights)
    found = hed.soft_edges(image, weights)
    assert found.shape == size and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)
    for name in weights:  # each of them counts
        changed = weights | {name: weights[name] + np.float32(0.2)}
        assert np.abs(hed.soft_edges(image, changed) - expected).max() > 1e-4 or size == (1, 5)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 1), (6, 7)])
def test_a_convolution_is_nine_shifted_products(size):
    draw = rng(3)
    x, kernel = draw.normal(size=(*size, 3)), draw.normal(size=(3, 3, 3, 4))
    bias = draw.normal(size=4)
    found = hed._convolution(x, kernel, bias)
    np.testing.assert_allclose(found, literal_convolution(x, kernel, bias), atol=1e-12)


def test_weights_are_read_from_their_file(weights, tmp_path):
    save_file(weights, tmp_path / "hed.safetensors")
    found = hed.weights_in(str(tmp_path / "hed.safetensors"))
    assert set(found) == set(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(found[name], value)
    assert hed.weights_in(str(tmp_path / "hed.safetensors")) is found  # read once


def broken(weights, tmp_path, how):
    file = tmp_path / f"{how}.safetensors"
    if how == "text":
        file.write_text("not weights")
    elif how == "folder":
        file.mkdir()
    elif how != "missing":
        fewer = {name: value for name, value in weights.items() if name != "side3/bias"}
        other = {
            "fewer": fewer,
            "more": weights | {"head": np.zeros(2, np.float32)},
            "wider": weights | {"side3/kernel": np.zeros(9, np.float32)},
        }
        save_file(other[how], file)
    return str(file)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "There is no "),
        ("text", "cannot be read"),
        ("folder", "cannot be read"),
        ("fewer", "'side3/bias'"),
        ("more", "'head'"),
        ("wider", "'side3/kernel'"),
    ],
)
def test_a_file_that_is_not_the_network_is_one_line_with_the_command(weights, tmp_path, how, said):
    file = broken(weights, tmp_path, how)
    with pytest.raises(InputError) as refused:
        hed.weights_in(file)
    line = str(refused.value)
    assert (
        file in line and said in line and "tools/datasets/fetch_hed.py" in line and "\n" not in line
    )
