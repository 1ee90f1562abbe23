"""The way between released tensors and ours: there and back, and what it refuses."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import drawn_inputs
from parity import SMALL, TEXT_WIDTH, tensors_of
from witnesses import FILE

from onediff_jax.errors import InputError
from onediff_jax.models.nextdit import NextDiT
from onediff_jax.models.t5 import T5Config, T5Encoder
from onediff_jax.models.vae import AutoencoderKL, VAEConfig
from onediff_jax.ops.layout import Layout, Slot
from onediff_jax.release.mapping import (
    Names,
    current_name,
    from_released,
    released,
    released_shapes,
)
from onediff_jax.release.names import T5_NAMES, VAE_NAMES, nextdit_names

# A network with one parameter of every kind.
SHAPES = {
    "stem": {"conv_3": {"kernel": (2, 3, 4, 5), "bias": (5,)}},
    "layers": {"matrix": (2, 6, 12), "norm": (2, 12)},
    "table": (7, 6),
}
SHAPES = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, np.float32),
    SHAPES,
    is_leaf=lambda x: type(x) is tuple,
)
NAMES = Names(
    "a toy",
    {
        "{}.convs.{}.weight": ("{}/conv_{}/kernel", "C"),
        "{}.convs.{}.bias": ("{}/conv_{}/bias", ""),
        "blocks.{}.weight": ("layers/matrix", "TR"),
        "blocks.{}.norm": ("layers/norm", "R"),
        "shared": ("table", ""),
    },
    {"old.{}.matrix": "blocks.{}.weight", "tied": "shared"},
    head=4,
)
RNG = np.random.default_rng(0)
TENSORS = {
    "stem.convs.3.weight": RNG.standard_normal((5, 4, 2, 3)),
    "stem.convs.3.bias": RNG.standard_normal(5),
    "blocks.0.weight": RNG.standard_normal((12, 6)),
    "blocks.1.weight": RNG.standard_normal((12, 6)),
    "blocks.0.norm": RNG.standard_normal(12),
    "blocks.1.norm": RNG.standard_normal(12),
    "shared": RNG.standard_normal((7, 6)),
}
TENSORS = {name: array.astype(np.float32) for name, array in TENSORS.items()}


VAE = AutoencoderKL(VAEConfig())
OLD = "decoder.mid_block.attentions.0."  # as in checkpoints of Stable Diffusion 1
VAE_ALIASES_IN_FULL = {
    f"{OLD}query.weight": f"{OLD}to_q.weight",
    f"{OLD}key.bias": f"{OLD}to_k.bias",
    f"{OLD}value.weight": f"{OLD}to_v.weight",
    f"{OLD}proj_attn.bias": f"{OLD}to_out.0.bias",
    f"{OLD}group_norm.bias": f"{OLD}group_norm.bias",
}


def init_t5(key):
    ids = jnp.zeros((1, 1), int)
    return T5Encoder(T5Config(), 32128).init(key, ids, ids > 0)["params"]


def shapes_of(init):
    return nn.meta.unbox(jax.eval_shape(init, jax.random.key(0)))


def ours(tensors):
    return from_released(tensors, NAMES, SHAPES)


def test_every_kind_of_parameter_lies_where_and_as_ours_do():
    found, order = ours(TENSORS), [h + p for h in (0, 4, 8) for p in (0, 2, 1, 3)]
    kernel = found["stem"]["conv_3"]["kernel"]
    assert all(
        kernel[h, w, i, o] == TENSORS["stem.convs.3.weight"][o, i, h, w]
        for h, w, i, o in np.ndindex(2, 3, 4, 5)
    )
    for layer in range(2):
        matrix = TENSORS[f"blocks.{layer}.weight"].T
        assert np.array_equal(found["layers"]["matrix"][layer], matrix[:, order])
        assert np.array_equal(
            found["layers"]["norm"][layer], TENSORS[f"blocks.{layer}.norm"][order]
        )
    assert np.array_equal(found["table"], TENSORS["shared"])
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, SHAPES)


def test_there_and_back_is_the_same_to_the_bit():
    survives_the_round_trip(TENSORS, NAMES, SHAPES)
    shapes = {name: array.shape for name, array in TENSORS.items()}
    assert released_shapes(SHAPES, NAMES) == shapes


def test_a_denoiser_survives_the_round_trip():
    layout = Layout((Slot(1, 4),))
    inputs = drawn_inputs(layout, SMALL.features, TEXT_WIDTH, b=1)
    shapes = shapes_of(lambda key: NextDiT(SMALL).init(key, **inputs, layout=layout)["params"])
    survives_the_round_trip(tensors_of(SMALL), nextdit_names(SMALL), shapes)


@pytest.mark.parametrize("case", ["vae", "t5"])
def test_the_released_names_and_shapes_are_those_of_the_library(case):
    names, init = {"vae": (VAE_NAMES, VAE.init), "t5": (T5_NAMES, init_t5)}[case]
    expected = json.loads(str(np.load(FILE)[f"{case}/shapes"]))
    found = released_shapes(shapes_of(init), names)
    assert found == {name: tuple(shape) for name, shape in expected.items()}


def survives_the_round_trip(tensors, names, shapes):
    tensors = {name: array.astype(np.float32) for name, array in tensors.items()}
    back = released(from_released(tensors, names, shapes), names)
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)


def test_other_names_and_copies_are_accepted():
    old = dict(TENSORS)
    old["old.1.matrix"] = old.pop("blocks.1.weight")[:, :, None, None]
    old["tied"] = old["shared"].copy()
    assert jax.tree.all(jax.tree.map(np.array_equal, ours(old), ours(TENSORS)))
    old["tied"] = old.pop("shared")
    assert jax.tree.all(jax.tree.map(np.array_equal, ours(old), ours(TENSORS)))


def test_all_that_is_wrong_is_told_at_once():
    wrong = dict(TENSORS, extra=np.zeros(3), tied=TENSORS["shared"] + 1)
    wrong["old.7.matrix"] = wrong["blocks.0.weight"]
    wrong["blocks.0.weight"] = wrong["blocks.0.weight"].T
    wrong["stem.convs.3.bias"] = np.zeros((1, 5))
    del wrong["blocks.1.norm"]
    with pytest.raises(InputError) as refused:
        ours(wrong)
    assert str(refused.value) == (
        "These weights are not those of a toy: missing ['blocks.1.norm'], "
        "unknown ['extra', 'old.7.matrix'], "
        "of another shape ['blocks.0.weight is (6, 12), not (12, 6)', "
        "'stem.convs.3.bias is (1, 5), not (5,)'], "
        "different copies of one tensor [['shared', 'tied']]."
    )


@pytest.mark.parametrize("rules", [{}, {"b.{}": ("ta{}", ""), "shared": ("table", "")}])
def test_a_parameter_without_exactly_one_rule_is_refused(rules):
    names = NAMES._replace(rules={**rules, "blocks.{}.norm": ("layers/norm", "")})
    params = {"layers": {"norm": np.zeros((2, 3))}, "table": np.zeros(2)}
    with pytest.raises(InputError, match=r"exactly one rule for each of \['table'\]"):
        released(params, names)


@pytest.mark.parametrize(("old", "name"), VAE_ALIASES_IN_FULL.items())
def test_old_names_of_attention_are_known(old, name):
    assert current_name(old, VAE_NAMES.aliases) == name
