"""Kernels against the truth, without the devices they are for: interpreted, and compiled."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import B, drawn, in_both_types, value_and_cotangents
from drawn import relative_error
from numpy.testing import assert_array_equal

from onediff_jax.errors import InputError
from onediff_jax.ops import attention, device
from onediff_jax.ops.attention import flash as attention_flash
from onediff_jax.ops.attention import splash as attention_splash
from onediff_jax.ops.attention import triton as attention_triton
from onediff_jax.ops.attention.backend import Case
from onediff_jax.plan.topologies import devices_of, topologies

N, M = 140, 300  # tokens: several blocks, of which the last is not full
H100 = "NVIDIA H100 80GB HBM3"
KERNELS = pytest.mark.parametrize(
    ("backend", "kind"),
    [("flash", "TPU v3"), ("flash", "TPU v5 lite"), ("splash", "TPU v4"), ("triton", H100)],
)


def segments(n=N, m=M):
    """Three examples and padding, of which one has no key and padding among queries sees none."""
    rng = np.random.default_rng(5)
    return rng.integers(-1, 3, (B, n)), rng.integers(-1, 2, (B, m))


@pytest.fixture(autouse=True)
def interpreted(monkeypatch, request):
    """Kernels run on the host, with small blocks, as if the device were theirs."""
    for module in (attention_splash, attention_triton, attention_flash):
        monkeypatch.setattr(module, "_INTERPRET", True)
    monkeypatch.setattr(attention_splash, "_BLOCK", 128)
    for name, size in dict(QUERIES=128, _KEYS=256, CHUNK=128).items():
        monkeypatch.setattr(attention_flash, name, size)
    if "kind" in request.fixturenames:
        kind = request.getfixturevalue("kind")
        monkeypatch.setattr(device, "kind", lambda: kind)
    monkeypatch.setattr(device, "partitioned", lambda: False)  # tests have eight devices


@KERNELS
@pytest.mark.parametrize(("n", "m"), [(N, M), (100, 60)])
@pytest.mark.parametrize(("softcap", "tiled"), [(30.0, False), (None, True)])
def test_a_kernel_is_the_reference_in_values_and_gradients(backend, kind, n, m, softcap, tiled):
    arrays, ids, settings = drawn(n=n, m=m), segments(n, m), dict(softcap=softcap, tiled=tiled)
    expected = value_and_cotangents(*arrays, *ids, **settings, backend="reference")
    found = value_and_cotangents(*arrays, *ids, **settings, backend=backend)
    for ours, truth in zip(found, expected, strict=True):
        assert ours.dtype == np.float32
        assert relative_error(ours, truth) < 5e-6
    blind, unseen = ~np.isin(ids[0], (0, 1)), ids[1] < 0
    assert blind.any() and unseen.any()
    for array in (found[0][blind], found[1][blind], found[2][unseen], found[3][unseen]):
        assert_array_equal(array, 0)


@KERNELS
def test_a_kernel_keeps_logits_in_float32_where_inputs_are_bfloat16(backend, kind):
    ids = dict(zip(("q_segments", "k_segments"), segments(), strict=True))
    found, exact = in_both_types(drawn(n=N, m=M, sharpness=3.0), backend, **ids)
    for ours, truth in zip(found, exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert relative_error(ours, truth) < 1e-2


def test_cudnn_is_asked_for_what_it_has(monkeypatch):
    asked = []

    def stand_in(q, k, v, *, mask, implementation):
        asked.append(implementation)
        return attend(q, k, v, mask=mask, implementation="xla")

    attend = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    monkeypatch.setattr(device, "kind", lambda: H100)
    ids = dict(zip(("q_segments", "k_segments"), segments(), strict=True))
    settings = dict(softcap=None, tiled=True, **ids)
    found, exact = in_both_types(drawn(n=N, m=M, sharpness=3.0), "cudnn", **settings)
    assert set(asked) == {"cudnn"}
    for ours, truth in zip(found, exact, strict=True):
        assert relative_error(ours, truth) < 1.5e-2
    assert_array_equal(found[0][~np.isin(ids["q_segments"], (0, 1))], 0)


RELEASED = Case(head=120, queries=1024, keys=1024, softcap=30.0)
PROMPTS = RELEASED._replace(keys=300, softcap=None)
VAE = Case(head=512, queries=4096, keys=4096, softcap=None)


@pytest.mark.parametrize(
    ("kind", "row", "text", "vae"),
    [
        ("cpu", "chunked", "chunked", "chunked"),
        ("TPU v2", "chunked", "chunked", "chunked"),
        ("TPU v3", "chunked", "chunked", "chunked"),
        ("TPU v4", "splash", "splash", "splash"),
        ("TPU v5 lite", "splash", "splash", "splash"),
        ("TPU v5", "splash", "splash", "splash"),
        ("TPU v6 lite", "splash", "splash", "splash"),
        (H100, "chunked", "chunked", "chunked"),
        ("AMD Instinct MI300X", "chunked", "chunked", "chunked"),
    ],
)
def test_auto_takes_what_has_run_on_such_a_device_and_serves_the_case(kind, row, text, vae):
    found = [attention.chosen("auto", case, kind).backend for case in (RELEASED, PROMPTS, VAE)]
    assert found == [row, text, vae]


def test_what_is_chosen_is_what_runs_and_what_the_log_says(monkeypatch):
    monkeypatch.setattr(device, "kind", lambda: "TPU v4")
    called = []
    for name, backend in attention.BACKENDS.items():

        def stand_in(q, *_, name=name):
            called.append(name)
            return q

        watched = dataclasses.replace(backend, attend=stand_in)
        monkeypatch.setitem(attention.BACKENDS, name, watched)
    arrays = [jnp.asarray(x) for x in drawn()[:3]]
    ids = jnp.zeros((B, 7), jnp.int32), jnp.zeros((B, 12), jnp.int32)
    attention.attend(*arrays, *ids, softcap=30.0)
    monkeypatch.setattr(device, "partitioned", lambda: True)
    attention.attend(*arrays, *ids)
    assert called == ["splash", "chunked"]
    line = attention.described("auto", RELEASED, PROMPTS._replace(partitioned=True))
    assert line.startswith("attention: splash within the row (")
    assert ", chunked over prompts (" in line


KINDS = ("cpu", "TPU v2", "TPU v3", "TPU v4", "TPU v5 lite", "TPU v6 lite", "NVIDIA A100", "AMD")


@pytest.mark.parametrize("kind", KINDS)
def test_auto_serves_every_case_on_every_device_and_plain_xla_can_be_asked_for(kind):
    values = itertools.product(
        (8, 30, 120, 128, 160, 512), (1, 77, 1024), (1, 77, 300), (None, 30.0),
        (jnp.float32, jnp.bfloat16), (False, True),
    )  # fmt: skip
    for case in itertools.starmap(Case, values):
        backend = attention.chosen("auto", case, kind).backend
        assert attention.BACKENDS[backend].refusal(case, kind) is None
        for asked in ("chunked", "reference"):
            assert attention.chosen(asked, case, kind).backend == asked


@pytest.mark.parametrize(
    ("asked", "kind", "changes", "message"),
    [
        ("splash", "cpu", {}, "'splash', .*needs a TPU v4 or later, and this is cpu"),
        ("splash", "TPU v3", {}, "this is TPU v3; set it to auto or flash or chunked"),
        ("splash", "TPU v4", dict(partitioned=True), "cannot split a kernel.*auto or chunked"),
        ("flash", "TPU v2", {}, "this is TPU v2; set it to auto or chunked or reference"),
        ("flash", "TPU v4", dict(head=160), "at most 128 channels, and these have 160"),
        ("cudnn", H100, {}, "model.softcap is 30.0; set it to auto or triton or chunked"),
        ("cudnn", H100, dict(softcap=None, dtype=jnp.float32), "bfloat16, and this is float32"),
        ("cudnn", H100, dict(softcap=None, head=132), "a multiple of 8, and these have 132"),
        ("cudnn", H100, dict(softcap=None, keys=77), "even numbers.*1024 read 77"),
        ("triton", "AMD Instinct", {}, "this is AMD Instinct; set it to auto or chunked"),
        ("triton", H100, dict(head=512), "at most 128 channels, and these have 512"),
    ],
)
def test_a_case_that_a_backend_cannot_serve_is_refused_with_those_that_can(
    asked, kind, changes, message
):
    with pytest.raises(InputError, match=message):
        attention.chosen(asked, RELEASED._replace(**changes), kind)


def gradient_of(backend, h, dtype):
    """A program of attention's gradient at the released size, and the shapes it takes."""

    def shape(*sizes, dtype=dtype):
        return jax.ShapeDtypeStruct(sizes, dtype)

    def run(q, k, v, q_segments, k_segments):
        def total(q, k, v):
            run = attention.BACKENDS[backend].attend(q, k, v, q_segments, k_segments, 30.0)
            return run.astype(jnp.float32).sum()

        return jax.grad(total, (0, 1, 2))(q, k, v)

    ids = [shape(1, n, dtype=jnp.int32) for n in (1024, 1024)]
    keys = [shape(1, 1024, 8, h)] * 2
    return jax.jit(run), (shape(1, 1024, 8, 4, h), *keys, *ids)


def test_the_kernel_for_gpus_is_lowered_for_them(monkeypatch):
    monkeypatch.setattr(attention_triton, "_INTERPRET", False)
    program, shapes = gradient_of("triton", 120, jnp.bfloat16)
    text = program.trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 3  # forward, queries, keys


@pytest.mark.gpu
@pytest.mark.parametrize(("kernel", "softcap"), [("triton", 30.0), ("cudnn", None)])
def test_kernels_for_gpus_run_on_one(kernel, softcap, monkeypatch):
    if jax.devices()[0].platform != "gpu":
        pytest.skip("needs a GPU: TEST_PLATFORM=cuda pytest -m gpu")
    monkeypatch.undo()
    check_on_device(kernel, softcap)


@pytest.mark.tpu
@pytest.mark.parametrize(("kernel", "softcap"), [("auto", 30.0), ("flash", 30.0), ("flash", None)])
def test_kernels_for_tpus_run_on_one(kernel, softcap, monkeypatch):
    if jax.devices()[0].platform != "tpu":
        pytest.skip("needs a TPU: TEST_PLATFORM=tpu pytest -m tpu")
    monkeypatch.undo()
    check_on_device(kernel, softcap)


def check_on_device(kernel, softcap):
    """Values and gradients in bfloat16 are those of the reference in float32."""
    n, m = 640, 1300  # several blocks of every kernel, of which the last is not full
    ids = dict(zip(("q_segments", "k_segments"), segments(n, m), strict=True))
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in drawn(n=n, m=m, h=120)]
    with jax.default_matmul_precision("default"):  # as in a run: tests ask for exact products
        found = value_and_cotangents(*arrays, softcap=softcap, **ids, backend=kernel)
    exact = [x.astype(jnp.float32) for x in arrays]
    exact = value_and_cotangents(*exact, softcap=softcap, **ids, backend="reference")
    for ours, truth in zip(found, exact, strict=True):
        assert relative_error(ours, truth) < 1.5e-2


@pytest.mark.pod
@pytest.mark.parametrize(
    ("generation", "asked", "kernel"),
    [
        ("v3", "auto", None),
        ("v3", "flash", "flash_backward"),
        ("v5e", "auto", "splash_mha_dkv"),
        *(
            pytest.param(generation, *case, marks=pytest.mark.slow)
            for generation in ("v4", "v5p", "v6e")
            for case in (("auto", "splash_mha_dkv"), ("flash", "flash_backward"))
        ),
        pytest.param("v5e", "flash", "flash_backward", marks=pytest.mark.slow),
    ],
)
def test_what_suits_a_tpu_is_compiled_for_it(generation, asked, kernel, monkeypatch):
    """Self-attention with segments and a cap, then prompts', at the released size, backwards."""
    pytest.importorskip("libtpu")
    monkeypatch.undo()
    slices = [t for t in topologies().values() if t.shape.startswith(f"{generation}:")]
    device = devices_of(min(slices, key=lambda t: t.devices))[0]
    mesh = jax.sharding.Mesh(np.array([device]), ("data",))

    def total(q, k, v, text_k, text_v, ids, text_ids):
        seen = attention.attend(q, k, v, ids, ids, softcap=30.0, backend=asked)
        read = attention.attend(q, text_k, text_v, ids, text_ids, tiled=True, backend=asked)
        return (seen.astype(jnp.float32) * read).sum()

    def shape(*sizes, dtype=jnp.bfloat16):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    n = 2048  # several blocks of every kernel
    arrays = shape(1, n, 32, 120), *[shape(1, m, 8, 120) for m in (n, n, 300, 300)]
    ids = [shape(1, m, dtype=jnp.int32) for m in (n, 300)]
    everywhere = jax.sharding.PartitionSpec()
    gradients = jax.shard_map(
        jax.grad(total, range(5)),
        mesh=mesh,
        in_specs=everywhere,
        out_specs=everywhere,
        check_vma=False,
    )
    with jax.default_matmul_precision("default"):  # as in a run: tests ask for exact products
        text = jax.jit(gradients).lower(*arrays, *ids).compile().as_text()
    calls = [line for line in text.splitlines() if 'target="tpu_custom_call"' in line]
    assert any(kernel in call for call in calls) if kernel else not calls
