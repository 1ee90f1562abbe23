"""Kernels against the truth, without the devices they are for: interpreted, and compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import B, drawn, in_both_types, value_and_cotangents
from drawn import relative_error
from numpy.testing import assert_array_equal

from onediff_jax.errors import InputError
from onediff_jax.ops import (
    attention,
    attention_cudnn,
    attention_flash,
    attention_splash,
    attention_triton,
    device,
)
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
        monkeypatch.setattr(module, "INTERPRET", True)
    monkeypatch.setattr(attention_splash, "BLOCK", 128)
    for name, size in dict(QUERIES=128, KEYS=256, CHUNK=128).items():
        monkeypatch.setattr(attention_flash, name, size)
    if "kind" in request.fixturenames:
        kind = request.getfixturevalue("kind")
        monkeypatch.setattr(device, "kind", lambda: kind)


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


def test_cudnn_refuses_a_cap_and_float32():
    q, k = jnp.zeros((1, 4, 1, 2, 8), jnp.bfloat16), jnp.zeros((1, 4, 1, 8), jnp.bfloat16)
    ids = jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(InputError, match="no cap, and 30.0 is asked; use 'triton'"):
        attention_cudnn.cudnn(q, k, k, ids, ids, 30.0)
    with pytest.raises(InputError, match="float32, and attention by 'cudnn' needs bfloat16"):
        attention_cudnn.cudnn(q.astype(jnp.float32), k, k, ids, ids, None)


@pytest.mark.parametrize(
    ("kind", "row", "text"),
    [
        ("cpu", "chunked", "chunked"),
        ("TPU v2", "chunked", "chunked"),
        ("TPU v3", "chunked", "chunked"),
        ("TPU v4", "splash", "splash"),
        ("TPU v5 lite", "splash", "splash"),
        ("TPU v5", "splash", "splash"),
        ("TPU v6 lite", "splash", "splash"),
        (H100, "triton", "cudnn"),
        ("AMD Instinct MI300X", "chunked", "chunked"),
    ],
)
def test_the_device_decides_where_nothing_is_asked(kind, row, text, monkeypatch):
    line = attention.described("auto", 30.0)
    assert line.startswith(f"attention: {row} within the row (")
    assert f", {text} over prompts (" in line
    watched = {name: lambda q, *_, name=name: called.append(name) or q for name in KNOWN}
    monkeypatch.setattr(attention, "BACKENDS", watched)
    called = []
    arrays = [jnp.asarray(x) for x in drawn()[:3]]
    for softcap in (30.0, None):
        ids = jnp.zeros((B, 7), jnp.int32), jnp.zeros((B, 12), jnp.int32)
        attention.attend(*arrays, *ids, softcap=softcap)
    assert called == [row, text]


KNOWN = tuple(attention.BACKENDS)


@pytest.mark.parametrize(
    ("asked", "kind", "softcap", "message"),
    [
        ("splash", "cpu", 30.0, "'splash', which is no backend for attention with a cap on cpu"),
        ("splash", "TPU v3", None, "without a cap on TPU v3; it can be auto, chunked, flash"),
        ("flash", "TPU v2", 30.0, "with a cap on TPU v2; it can be auto, chunked, reference"),
        ("cudnn", "NVIDIA A100", 30.0, "with a cap on NVIDIA A100; it can be auto, triton"),
        ("triton", "AMD Instinct", None, "it can be auto, chunked, reference"),
    ],
)
def test_what_a_device_cannot_do_is_refused_with_what_it_can(asked, kind, softcap, message):
    with pytest.raises(InputError, match=message):
        attention.chosen(asked, softcap, kind)


@pytest.mark.parametrize("asked", ["reference", "chunked"])
def test_plain_xla_can_be_asked_for_anywhere(asked):
    for kind in ("cpu", "TPU v2", "TPU v3", "TPU v6 lite", "NVIDIA A100", "AMD Instinct"):
        assert attention.chosen(asked, 30.0, kind).backend == asked


def gradient_of(backend, h, dtype):
    """A program of attention's gradient at the released size, and the shapes it takes."""

    def shape(*sizes, dtype=dtype):
        return jax.ShapeDtypeStruct(sizes, dtype)

    def run(q, k, v, q_segments, k_segments):
        def total(q, k, v):
            run = attention.BACKENDS[backend](q, k, v, q_segments, k_segments, 30.0)
            return run.astype(jnp.float32).sum()

        return jax.grad(total, (0, 1, 2))(q, k, v)

    ids = [shape(1, n, dtype=jnp.int32) for n in (1024, 1024)]
    keys = [shape(1, 1024, 8, h)] * 2
    return jax.jit(run), (shape(1, 1024, 8, 4, h), *keys, *ids)


def test_the_kernel_for_gpus_is_lowered_for_them(monkeypatch):
    monkeypatch.setattr(attention_triton, "INTERPRET", False)
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
        *((generation, "auto", "splash_mha_dkv") for generation in ("v4", "v5e", "v5p", "v6e")),
        *(
            (generation, "flash", "flash_backward")
            for generation in ("v3", "v4", "v5e", "v5p", "v6e")
        ),
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
