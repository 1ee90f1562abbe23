"""The interface of attention backends: a function, and which cases it supports."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike

LANES = 128  # channels of a TPU's vector register


class Case(NamedTuple):
    """The properties of an attention call that decide which backends support it."""

    head: int  # channels
    queries: int
    keys: int
    softcap: float | None
    dtype: DTypeLike = jnp.bfloat16  # of queries, keys and values
    partitioned: bool = False  # the compiler may split the program over several devices


@dataclasses.dataclass(frozen=True)
class Backend:
    """One way to compute attention.

    `attend(q, k, v, q_segments, k_segments, softcap)` takes grouped queries [b n g r h], keys and
    values [b m g h].  `refusal(case, kind)` says why it cannot serve a case on a kind of device (as
    JAX names it), or None.  `automatic(kind)` is true where `auto` may choose it: a kernel only
    where it has been run on such a device, plain XLA everywhere.
    """

    attend: Callable[..., Array]
    what: str
    refusal: Callable[[Case, str], str | None]
    automatic: Callable[[str], bool]


def no_refusal(case: Case, kind: str) -> None:
    """The `refusal` of a backend that supports every case on every device."""
    del case, kind


def kernel_refusal(case: Case, kind: str, suits: bool, needs: str, widest: int) -> str | None:
    """Why a Pallas kernel with heads of at most `widest` channels cannot serve a case, or None.

    `suits`: it is for devices of that kind; else the refusal says what it `needs`.
    """
    if not suits:
        return f"it needs {needs}, and this is {kind}"
    if case.partitioned:
        return "the compiler cannot split a kernel over devices outside of jax.shard_map"
    if case.head > widest:
        return f"its heads have at most {widest} channels, and these have {case.head}"
    return None


def dtype_name(dtype: Any) -> str:
    """The name of a dtype or scalar type, such as bfloat16."""
    return jnp.dtype(dtype).name
