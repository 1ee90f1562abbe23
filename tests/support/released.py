"""The PyTorch module that exported checkpoints carry, and a tiny network of it.

Whoever imports this is skipped where torch is missing.
"""

import importlib.util

import numpy as np
import pytest
from places import ROOT
from released_configs import RELEASED

torch = pytest.importorskip("torch", reason="the PyTorch module needs torch: pip install torch")
pytest.importorskip("safetensors", reason="the PyTorch module needs it: pip install safetensors")

# By its path, as its users load it: no type checks of this package's at run time.
FILE = ROOT / "onediff_jax" / "release" / "modeling_nextdit.py"
SPEC = importlib.util.spec_from_file_location("modeling_nextdit", FILE)
modeling = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(modeling)

TINY = RELEASED | {
    "hidden_size": 96, "num_heads": 8, "num_kv_heads": 2, "depth": 2, "caption_channels": 10,
    "in_channels": 4, "multiple_of": 16,
}  # fmt: skip
BATCH, VIEWS, WORDS = 2, 3, 5


def network(dtype=torch.float64, **changes):
    """A tiny network of which every parameter matters."""
    model = modeling.NextDiT(**TINY | changes).to(dtype)
    generator = torch.Generator().manual_seed(0)
    for name, values in model.named_parameters():
        drawn = 0.2 * torch.randn(values.shape, generator=generator, dtype=torch.float64)
        values.data = (drawn + ("norm" in name and "weight" in name)).to(dtype)
    return model.requires_grad_(False)


def inputs(dtype=torch.float64, rows=4, columns=6, seed=1):
    """Latents, times of views, states, and a mask under which the texts have 5 and 3 words."""
    draw = torch.Generator().manual_seed(seed)
    latents = torch.randn(BATCH, VIEWS, 4, rows, columns, generator=draw, dtype=dtype)
    times = 1000 * torch.rand(BATCH, VIEWS, generator=draw, dtype=dtype)
    states = torch.randn(BATCH, WORDS, 10, generator=draw, dtype=dtype)
    return latents, times, states, torch.arange(WORDS) < torch.tensor([[5], [3]])


def close(a, b, tolerance=1e-9):
    """Whether two tensors, arrays or lists differ by no more than that anywhere."""
    a, b = (x if isinstance(x, torch.Tensor) else torch.as_tensor(np.asarray(x)) for x in (a, b))
    return bool(((a - b).abs() <= tolerance).all())
