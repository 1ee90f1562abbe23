"""Fine-tuning: adapters beside PEFT's, what is trained, and runs that start from runs."""

import dataclasses
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from drawn import drawn_params, relative_error
from flax.traverse_util import flatten_dict
from numpy.testing import assert_allclose
from tiny import tiny_config
from training import saved_state

from onediff_jax.errors import InputError
from onediff_jax.models.layers import Dense, LoraConfig
from onediff_jax.train.checkpoint import Checkpoints
from onediff_jax.train.compile import compiled_step, state_shapes
from onediff_jax.train.config import CheckpointConfig, EvaluateConfig, LogConfig
from onediff_jax.train.loop import train
from onediff_jax.train.prepare import first_assets, prepare
from onediff_jax.train.restore import restore_model
from onediff_jax.train.state import optimizer_of
from onediff_jax.train.tune import TuneConfig, merge_params, split_params

LORA = LoraConfig(rank=3, alpha=6.0, targets=("wq", "wo", "w2"))
RUN = dict(
    checkpoint=CheckpointConfig(every=2, keep=5),
    log=LogConfig(every=1),
    evaluate=EvaluateConfig(every=0),
)


def small(**changes):
    """A run that compiles quickly."""
    config = tiny_config(**RUN, **changes)
    data = dataclasses.replace(config.data, row=config.data.row[:1], tasks={"text2image": 1.0})
    model = dataclasses.replace(config.model, depth=1)
    return dataclasses.replace(config, data=data, model=model)


def with_lora(config, lora=LORA):
    return dataclasses.replace(config, model=dataclasses.replace(config.model, lora=lora))


def trained(config, workdir: pathlib.Path) -> pathlib.Path:
    return train(config, workdir)


def weights(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    return flatten_dict(restore_model(workdir).trained.params, sep="/")


def test_an_adapter_adds_what_peft_adds():
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    layer = Dense(5, ("embed", "heads"), lora=LORA, name="wq")
    x = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)
    x = jnp.asarray(x)
    params = drawn_params(jax.eval_shape(layer.init, jax.random.key(0), x))["params"]
    theirs = torch.nn.Sequential()
    theirs.add_module("wq", torch.nn.Linear(7, 5, bias=False))
    adapters = peft.LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=["wq"])
    theirs = peft.get_peft_model(theirs, adapters)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            ours = next(k for k in params if k in name.lower().replace("base_layer", "kernel"))
            parameter.copy_(torch.tensor(np.array(params[ours]).T))
        expected = theirs(torch.tensor(np.array(x))).numpy()
    assert_allclose(layer.apply({"params": params}, x), expected, rtol=1e-5, atol=1e-5)
    without = Dense(5, ("embed", "heads"), name="wq").apply(
        {"params": {"kernel": params["kernel"]}}, x
    )
    assert relative_error(without, expected) > 0.1


def test_adapters_begin_as_those_of_peft():
    """A is uniform within 1/sqrt(in): torch's kaiming_uniform with a = sqrt(5); B is zero."""
    layer = Dense(40, ("embed", "heads"), lora=LoraConfig(rank=64, targets=("wq",)), name="wq")
    params = nn.meta.unbox(layer.init(jax.random.key(0), jnp.zeros((1, 96))))["params"]
    a, edge = np.asarray(params["lora_a"]).ravel(), 96**-0.5
    assert np.abs(a).max() <= edge
    assert scipy.stats.kstest(a, "uniform", (-edge, 2 * edge)).pvalue > 1e-3
    assert not np.asarray(params["lora_b"]).any()


def test_only_targets_get_adapters_stacked_over_layers():
    config = with_lora(tiny_config())
    networks = prepare(config).networks
    shapes = flatten_dict(jax.eval_shape(networks.init, jax.random.key(0)), sep="/")
    found = {name: leaf.value.shape for name, leaf in shapes.items() if "lora" in name}
    block, width = "denoiser/layers", config.model.width
    assert found == {
        f"{block}/attention/wq/lora_a": (2, width, 3),
        f"{block}/attention/wq/lora_b": (2, 3, width),
        f"{block}/attention/wo/lora_a": (2, width, 3),
        f"{block}/attention/wo/lora_b": (2, 3, width),
        f"{block}/feed_forward/w2/lora_a": (2, config.model.hidden, 3),
        f"{block}/feed_forward/w2/lora_b": (2, 3, width),
    }


PARAMS = {"a": {"kernel": np.ones((2, 2)), "bias": np.ones(2)}, "b": {"kernel": np.ones((2, 2))}}


def test_parameters_are_split_by_name_and_merged_again():
    some, rest = split_params(PARAMS, TuneConfig(train=("a/*",)))
    assert set(flatten_dict(some, sep="/")) == {"a/kernel", "a/bias"}
    assert set(flatten_dict(rest, sep="/")) == {"b/kernel"}
    assert jax.tree.structure(merge_params(some, rest)) == jax.tree.structure(PARAMS)
    everything, nothing = split_params(PARAMS, TuneConfig())
    assert nothing == {} and jax.tree.structure(everything) == jax.tree.structure(PARAMS)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(train=("c/*",)), "tune.train has 'c/.*', which matches no parameter.*a/bias"),
        (dict(train=()), "tune.train is empty"),
        (dict(rates={"z*": 2.0}), "tune.rates has 'z.*'"),
    ],
)
def test_patterns_that_match_nothing_are_refused(changes, match):
    with pytest.raises(InputError, match=match):
        split_params(PARAMS, TuneConfig(**changes))


def test_an_update_is_scaled_by_the_first_factor_that_matches():
    params = jax.tree.map(np.float32, PARAMS)
    config = tiny_config().optimizer
    grads = jax.tree.map(lambda x: 0.1 * x, params)

    def update(tune):
        optimizer = optimizer_of(config, 10, tune)
        moments = optimizer.init(params)
        for _ in range(3):  # the first step of the warm-up is of length 0
            updates, moments = optimizer.update(grads, moments, params)
        return flatten_dict(updates, sep="/")

    plain = update(TuneConfig())
    scaled = update(TuneConfig(rates={"a/bias": 0.0, "a/*": 0.5, "*": 2.0}))
    for name, factor in (("a/bias", 0.0), ("a/kernel", 0.5), ("b/kernel", 2.0)):
        assert np.abs(plain[name]).min() > 0
        assert_allclose(scaled[name], factor * plain[name], rtol=1e-6)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return trained(small(steps=4), tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    """A run of 4 steps that trains adapters alone, on a base in bfloat16, and its configuration."""
    tune = TuneConfig(start=str(base), train=("*/lora_?",), frozen_dtype="bfloat16")
    config = with_lora(small(steps=4, tune=tune))
    return trained(config, tmp_path_factory.mktemp("adapted")), config


def test_a_run_starts_from_the_average_or_the_weights_of_another(base, tmp_path):
    saved = saved_state(base, 4)
    for kind in ("ema", "params"):
        tune = TuneConfig(start=str(base), weights=kind, rates={"*": 0.0})  # nothing moves
        config = small(steps=2, tune=tune)
        found = weights(trained(config, tmp_path / kind))
        expected = flatten_dict(saved[kind], sep="/")
        assert set(found) == set(expected)
        for name in found:
            assert_allclose(found[name], expected[name], rtol=1e-6, err_msg=name)


def test_a_start_has_a_fresh_optimizer_and_count(base, tmp_path):
    tune = TuneConfig(start=str(base))
    workdir = trained(small(steps=2, tune=tune), tmp_path / "again")
    state = saved_state(workdir, 2)
    assert int(state["step"]) == 2
    leaves = jax.tree_util.tree_leaves_with_path(state["moments"])
    counts = [leaf for path, leaf in leaves if getattr(path[-1], "key", "") == "count"]
    assert counts and all(int(count) == 2 for count in counts)


def test_adapters_alone_are_trained_and_saved_and_the_rest_is_read_from_the_base(adapted, base):
    workdir, _ = adapted
    saved = saved_state(workdir, 4)
    assert "frozen" not in saved
    assert all("lora" in name for name in flatten_dict(saved["params"], sep="/"))
    found, before = weights(workdir), weights(base)
    assert set(found) - set(before) == {name for name in found if "lora" in name}
    for name in before:  # the type of the frozen weights is the run's affair, not the model's
        assert_allclose(found[name], before[name], rtol=2**-8, err_msg=name)
    moved = [np.abs(found[name]).max() for name in found if name.endswith("lora_b")]
    assert len(moved) == 3 and min(moved) > 0


def test_a_resumed_run_of_adapters_ends_as_an_unbroken_one(adapted, tmp_path):
    workdir, config = adapted
    first = trained(dataclasses.replace(config, steps=2), tmp_path / "broken")
    last = weights(trained(config, first))
    for name, value in weights(workdir).items():
        assert_allclose(last[name], value, rtol=1e-6, atol=1e-7, err_msg=name)


def test_a_base_of_another_model_is_refused_before_anything_is_made(base, tmp_path):
    config = small(tune=TuneConfig(start=str(base)))
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, width=48))
    with pytest.raises(InputError, match="config.model.width is 48, and 24 in .*tune.start"):
        trained(wider, tmp_path / "wider")
    absent = dataclasses.replace(config, tune=TuneConfig(start=str(tmp_path / "nothing")))
    with pytest.raises(InputError, match="nothing holds no checkpoint"):
        trained(absent, tmp_path / "absent")


def test_a_base_that_has_moved_away_is_named(adapted, tmp_path):
    _, config = adapted
    gone = dataclasses.replace(config.tune, start=str(tmp_path / "gone"))
    with pytest.raises(InputError, match="gone holds no checkpoint"):
        trained(dataclasses.replace(config, tune=gone), tmp_path / "new")


def kept(config, workdir: pathlib.Path, step: int):
    """The state of a run's checkpoint, in the types and shardings that a configuration asks for."""
    with Checkpoints(workdir, config.checkpoint) as checkpoints:
        checkpoints.changes(step, config)
        shapes = state_shapes(compiled_step(prepare(config)), config)
        return checkpoints.restore(step, shapes, config), shapes


def test_a_run_without_an_ema_is_resumed_sampled_exported_and_started_from(tmp_path):
    """Its trained parameters serve everywhere, and its moments are Adafactor's."""
    from bridge import export_torch
    from bridge import run as run_tool

    optimizer = dataclasses.replace(tiny_config().optimizer, kind="adafactor", ema=0.0)
    config = small(steps=1, optimizer=optimizer)
    workdir = trained(config, tmp_path / "run")
    state, shapes = kept(config, workdir, 1)
    assert jax.tree.structure(state) == jax.tree.structure(shapes)
    assert int(state.step) == 1 and not state.ema
    expected = flatten_dict(jax.device_get(state.params), sep="/")
    served = flatten_dict(jax.device_get(state.weights), sep="/")
    for found in (weights(workdir), served):
        assert set(found) == set(expected)
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    # A run starts from it under another optimizer, with tune.weights of ema, as by default.
    first_assets(small(tune=TuneConfig(start=str(workdir))), {})
    assert run_tool(export_torch, checkpoint=workdir, out=tmp_path / "out", ema=True) == 0
    assert "(as trained, float32)" in (tmp_path / "out" / "README.md").read_text()
    for changes, said in (
        (dict(kind="adamw"), "optimizer.kind is 'adamw', and 'adafactor' in the checkpoint"),
        (dict(ema=0.9), "optimizer.ema is 0.9, and 0.0 in the checkpoint"),
    ):
        changed = dataclasses.replace(optimizer, **changes)
        with pytest.raises(InputError, match=said):
            kept(dataclasses.replace(config, optimizer=changed), workdir, 1)


def test_moments_and_ema_can_change_their_type_when_a_run_goes_on(base):
    config = small(steps=4)
    before, _ = kept(config, base, 4)
    smaller = dict(mu_dtype="bfloat16", ema_dtype="bfloat16", ema=0.999)
    smaller = dataclasses.replace(config.optimizer, **smaller)
    after, _ = kept(dataclasses.replace(config, optimizer=smaller), base, 4)
    names = jax.tree_util.tree_leaves_with_path(before.ema)
    for (path, old), new in zip(names, jax.tree.leaves(after.ema), strict=True):
        assert str(new.dtype) == ("bfloat16" if path[-1].key == "kernel" else "float32")
        assert_allclose(np.float32(new), np.float32(old), rtol=2**-8)
    for leaf in jax.tree.leaves(after.moments[1][0].mu):
        assert leaf.dtype == jnp.bfloat16
    without = dataclasses.replace(config.optimizer, ema=0.0)
    with pytest.raises(InputError, match="optimizer.ema is 0.0, and 0.9999 in the checkpoint"):
        kept(dataclasses.replace(config, optimizer=without), base, 4)
