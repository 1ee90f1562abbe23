"""The sampling loop of the PyTorch module: on velocities that are formulas."""

import math

import pytest
from released import close, modeling, network, torch

pytestmark = pytest.mark.slow  # of the witness itself


class Stub:
    """A network that is a formula of (latents, sigmas, states), and remembers what it was asked."""

    patch_size = (1, 2, 2)

    def __init__(self, velocity):
        self.velocity, self.asked = velocity, []

    def __call__(self, latents, times, states, mask, **settings):
        self.asked.append((latents.clone(), times, states, mask, settings))
        return self.velocity(latents, times[:, :, None, None, None] / 1000, states)


def noise_of(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


TEXT = (torch.ones(1, 2, 10, dtype=torch.float64), torch.ones(1, 2))


@pytest.mark.parametrize(
    ("tokens", "mu", "at_50", "at_100"),
    [
        (256, 0.5, 32.55, 16.38), (1024, 0.630, 36.90, 18.61), (3072, 0.977, 51.41, 26.12),
        (4096, 1.15, 60.55, 30.91),
    ],
)  # fmt: skip
def test_the_schedule_is_the_released_one(tokens, mu, at_50, at_100):
    for steps, last in ((50, at_50), (100, at_100)):
        sigmas = modeling.shifted_sigmas(steps, tokens)
        assert len(sigmas) == steps + 1 and sigmas[0] == 1 and sigmas[-1] == 0
        assert sigmas == sorted(sigmas, reverse=True)
        assert abs(1000 * sigmas[-2] - last) < 0.0051
        middle = math.exp(mu) / (math.exp(mu) + 1)  # where the even schedule is at 1/2
        assert abs(sigmas[steps // 2] - middle) < 2e-4


def test_a_field_that_points_at_an_image_ends_there():
    clean = noise_of(2, 1, 4, 8, 6) * 3
    stub = Stub(lambda x, sigma, _: (x - clean) / sigma)
    noise = noise_of(2, 1, 4, 8, 6)
    text = tuple(part.expand(2, *part.shape[1:]) for part in TEXT)
    assert close(modeling.sample(stub, noise, text, steps=7), clean, 1e-12)
    assert len(stub.asked) == 7 and torch.equal(stub.asked[0][0], noise)


def test_steps_are_eulers():
    sigmas = modeling.shifted_sigmas(9, 12)
    growth = math.prod(1 + b - a for a, b in zip(sigmas, sigmas[1:], strict=False))
    noise = noise_of(1, 1, 4, 8, 6)  # 4 x 3 tokens
    kept = noise.clone()
    found = modeling.sample(Stub(lambda x, *_: x), noise, TEXT, steps=9)
    assert close(found, growth * noise)
    assert torch.equal(noise, kept)
    assert torch.equal(found, modeling.sample(Stub(lambda x, *_: x), noise, TEXT, steps=9))


def test_given_views_stay_clean_and_have_the_last_steps_time():
    noise, clean = noise_of(1, 3, 4, 32, 32), noise_of(1, 4, 32, 32) + 5
    stub = Stub(lambda x, *_: torch.ones_like(x))
    found = modeling.sample(stub, noise, TEXT, given={1: clean}, steps=6, scale_factor=1.5)
    sigmas = modeling.shifted_sigmas(6, 2 * 256)  # tokens of the two views that are made
    assert torch.equal(found[:, 1], clean)
    assert close(found[:, [0, 2]], noise[:, [0, 2]] - 1)
    for sigma, (latents, times, *_, settings) in zip(sigmas, stub.asked, strict=False):
        assert torch.equal(latents[:, 1], clean)
        assert close(times, [[1000 * sigma, 1000 * sigmas[-2], 1000 * sigma]])
        assert settings == {"scale_factor": 1.5}


def test_guidance_leads_away_from_the_negative_text():
    noise, negative = noise_of(1, 1, 4, 8, 6), (torch.zeros_like(TEXT[0]), torch.zeros(1, 2))
    stub = Stub(
        lambda x, _, states: torch.ones_like(x) * states.mean(dim=(1, 2))[:, None, None, None, None]
    )
    assert close(modeling.sample(stub, noise, TEXT, negative, steps=5, guidance=4.0), noise - 4)
    latents, times, states, mask, _ = stub.asked[2]
    assert torch.equal(latents[0], latents[1]) and times.shape == (2, 1)
    assert torch.equal(states, torch.cat([negative[0], TEXT[0]]))
    assert mask.tolist() == [[0, 0], [1, 1]]
    assert close(modeling.sample(stub, noise, TEXT, steps=5), noise - 1)
    assert len(stub.asked[-1][0]) == 1  # and half the work


@pytest.mark.parametrize("settings", [{"steps": 0}, {"given": {0: 0}}, {"given": {-1: 0}}])
def test_what_cannot_be_made_is_refused(settings):
    with pytest.raises(ValueError, match="expected views to make"):
        modeling.sample(Stub(lambda x, *_: x), noise_of(1, 1, 4, 8, 6), TEXT, **settings)


def test_a_network_in_half_precision_samples_near_one_in_double():
    noise, given = noise_of(1, 2, 4, 8, 6), {1: noise_of(1, 4, 8, 6)}
    made = [
        modeling.sample(network(dtype), noise, TEXT, TEXT, given, steps=4)
        for dtype in (torch.float64, torch.bfloat16)
    ]
    assert made[1].dtype == torch.float64
    assert torch.equal(made[1][:, 1], given[1])
    assert (made[0] - made[1]).std() < 0.1 * made[0].std()
