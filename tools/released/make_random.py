"""Writes a folder in the released layout whose weights are random, by PyTorch.

    python tools/released/make_random.py --out DIR --size released   # 11.2 GB
    python tools/released/make_random.py --out DIR --size tiny --dtype bfloat16

What `import_torch` reads can so be tried where there is no network.  Names and shapes are those
of release/modeling_nextdit.py; only torch and safetensors are needed.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from onediff_jax.release.modeling_nextdit import WEIGHTS, NextDiT

RELEASED = json.loads(Path(__file__).with_name("transformer.json").read_text())
SIZES = {
    "released": {},
    "tiny": {
        "hidden_size": 24, "num_heads": 4, "num_kv_heads": 2, "depth": 2, "caption_channels": 16,
        "in_channels": 8, "multiple_of": 8,
    },
}  # fmt: skip
SHARD = 5 * 10**9  # bytes, of files of more than that


def drawn(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """A tensor at random: nothing at zero, norms' weights around 1, activations of order 1."""
    noise = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return noise.mul_(shape[-1] ** -0.5)
    return noise.mul_(0.2) + ("norm" in name and name.endswith("weight"))


def make(folder: Path, size: str, dtype: torch.dtype, seed: int = 0, shard: int = SHARD) -> None:
    """The folder `transformer`, in shards where it is long; a shard is held in memory."""
    config, generator = RELEASED | SIZES[size], torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in NextDiT(**config).state_dict().items()}
    parts, filled = [[]], 0
    for name, shape in shapes.items():
        filled += shape.numel() * dtype.itemsize
        if parts[-1] and filled > shard:
            parts, filled = [*parts, []], shape.numel() * dtype.itemsize
        parts[-1].append(name)
    places = {}
    folder = folder / "transformer"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for i, names in enumerate(parts):
        many = f"-{i + 1:05}-of-{len(parts):05}" if parts[1:] else ""
        file = WEIGHTS.replace(".", f"{many}.")
        tensors = {name: drawn(name, shapes[name], generator).to(dtype) for name in names}
        save_file(tensors, folder / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
    if parts[1:]:
        total = sum(shape.numel() for shape in shapes.values()) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=2) + "\n")


def main() -> None:
    """Reads the options; writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make(options.out, options.size, getattr(torch, options.dtype), options.seed)


if __name__ == "__main__":
    main()
