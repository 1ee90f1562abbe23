import dataclasses

import jax
import numpy as np
import pytest
from drawn import drawn_params
from tiny import Blobs, tiny_config

from onediff_jax.data.batching.settings import views_of_tasks
from onediff_jax.data.tasks.builders import is_ray
from onediff_jax.data.tasks.table import TASKS
from onediff_jax.errors import InputError
from onediff_jax.evaluate.held_out import complete
from onediff_jax.ops import solve
from onediff_jax.sampling.generate import Request, SampleConfig, TrainedModel, generate
from onediff_jax.sharding import MeshConfig, mesh_of, sharded_arrays, shardings_of
from onediff_jax.train.prepare import prepare

CONFIG = tiny_config()
RUN = prepare(CONFIG)
ASSETS, NETWORKS, TOKENIZER = RUN.assets, RUN.networks, RUN.tokenizer
PARAMS = drawn_params(jax.eval_shape(NETWORKS.init, jax.random.key(0)))
TRAINED = TrainedModel(NETWORKS, PARAMS, ASSETS.codec, TOKENIZER)
QUICK = SampleConfig(steps=3, guidance=2.0)
RNG = np.random.default_rng(0)


def image() -> np.ndarray:
    return RNG.integers(0, 256, (8, 12, 3)).astype(np.uint8)


GIVEN = [image() for _ in range(3)]


def made(
    given=GIVEN,
    prompts=("a", "b", "c"),
    config=QUICK,
    seed=0,
    task="depth2image",
    trained=TRAINED,
    **kwargs,
):
    requests = [Request(p, {"depth": g}) for p, g in zip(prompts, given, strict=True)]
    found = generate(trained, task, 2, requests, (8, 12), config, seed, **kwargs)
    return [views["image"] for views in found]


def same(found, expected) -> bool:
    """Equal up to the rounding of a grey level."""
    return all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(found, expected, strict=True))


WHOLE = made()


def test_samples_have_the_asked_size_and_depend_on_seed_prompt_and_given_views():
    assert all(m.shape == (8, 12, 3) and m.dtype == np.uint8 for m in WHOLE)
    assert not same(made(seed=1), WHOLE)
    assert not same(made(prompts=("a", "b", "other"))[2:], WHOLE[2:])
    assert same(made(prompts=("a", "b", "other"))[:2], WHOLE[:2])
    assert not same(made(given=[*GIVEN[:2], image()])[2:], WHOLE[2:])


def test_a_sample_does_not_depend_on_its_neighbours_or_on_the_batch():
    assert same(made(batch=2), WHOLE)
    assert same(made(given=GIVEN[:1], prompts=["a"]), WHOLE[:1])


@pytest.mark.parametrize(
    "sizes", [dict(data=2, fsdp=2, tensor=2), dict(slices=2, data=2, sequence=2)], ids=str
)
def test_every_mesh_makes_the_samples_of_one_device(sizes):
    mesh = mesh_of(MeshConfig(**sizes))
    boxed = jax.eval_shape(NETWORKS.init, jax.random.key(0))
    params = sharded_arrays(jax.device_get(PARAMS), shardings_of(boxed, mesh))
    assert same(made(trained=TRAINED._replace(params=params, mesh=mesh)), WHOLE)


def test_guidance_follows_the_prompt_more_and_one_needs_no_second_pass():
    plain = made(config=SampleConfig(steps=3, guidance=1.0))
    nearly = made(config=SampleConfig(steps=3, guidance=1.0001))
    assert same(plain, nearly)
    ignored = made(config=SampleConfig(steps=3, guidance=0.0))
    assert same(ignored, made(config=SampleConfig(steps=3, guidance=0.0), prompts="xyz"))
    assert not same(plain, WHOLE)


def test_a_negative_prompt_is_what_guidance_leads_away_from():
    """v = v_n + s (v_c - v_n): at s = 0 the negative prompt is all that is followed."""

    def guided(guidance, negative="", prompts=("a", "a", "a")):
        return made(config=SampleConfig(3, guidance, negative), prompts=prompts)

    assert same(guided(0.0, "b"), guided(1.0, prompts="bbb"))
    assert not same(guided(2.0, "b"), guided(2.0))
    assert same(guided(2.0, "a"), guided(1.0))  # nothing to lead away from


def test_a_scheduler_and_its_scale_decide_the_noise_levels():
    def scheduled(schedule=TRAINED.schedule, **changes):
        requests = [Request("a", {"depth": GIVEN[0]})]
        config = SampleConfig(steps=3, guidance=2.0, **changes)
        trained = TRAINED._replace(schedule=schedule)
        (found,) = generate(trained, "depth2image", 2, requests, (8, 12), config, 0)
        return [found["image"]]

    tokens = 2 * 3  # of the view that is made
    plain, scaled = (solve.Schedule().factor(n * tokens) for n in (1, 500))
    assert same(scheduled(), scheduled(shift=plain))
    assert same(scheduled(noise_scale=500.0), scheduled(shift=scaled))
    assert not same(scheduled(), scheduled(noise_scale=500.0))
    static = solve.Schedule(scaled, use_dynamic_shifting=False)
    assert same(scheduled(static), scheduled(shift=scaled))
    assert same(scheduled(static, shift=plain), scheduled())
    assert same(scheduled(static, noise_scale=3.0), scheduled(static))


def test_a_negative_prompt_that_guidance_would_not_read_is_refused():
    with pytest.raises(InputError, match="negative is 'b' and guidance 1"):
        SampleConfig(negative="b", guidance=1.0)


def test_given_views_can_be_shown_at_the_smallest_level_or_at_zero():
    assert not same(made(config=dataclasses.replace(QUICK, given_time="zero")), WHOLE)


def test_heun_takes_other_steps_than_euler():
    assert not same(made(config=dataclasses.replace(QUICK, method="heun")), WHOLE)


def test_any_view_can_be_a_target():
    for task, views in views_of_tasks(CONFIG.data).items():
        for direction in TASKS[task].builder.directions(views):
            completed = complete(
                TRAINED,
                Blobs(),
                [0, 3],
                task,
                views,
                direction.targets,
                10,
                CONFIG.data.conditions,
                SampleConfig(steps=2, guidance=1.0),
                seed=0,
            )
            assert [set(c.generated) for c in completed] == [set(direction.targets)] * 2
            height, width = completed[0].example.size
            for name, view in completed[0].generated.items():
                expected = (height // 2, width // 2, 6) if is_ray(name) else (height, width, 3)
                assert view.shape == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(task="depth2imag"), "did you mean"),
        (dict(task="semanticmap2image"), "has no view"),
    ],
)
def test_impossible_requests_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        made(**change)


def test_a_request_that_leaves_nothing_to_make_is_refused():
    with pytest.raises(InputError, match="leave one of"):
        generate(TRAINED, "text2image", 1, [Request("a", {"image": GIVEN[0]})], (8, 12), QUICK, 0)
    with pytest.raises(InputError, match="multiple of 4"):
        generate(TRAINED, "text2image", 1, [Request("a", {})], (9, 12), QUICK, 0)
    with pytest.raises(InputError, match="same condition views"):
        both = [Request("a", {"depth": GIVEN[0]}), Request("a", {"image": GIVEN[0]})]
        generate(TRAINED, "depth2image", 2, both, (8, 12), QUICK, 0)
