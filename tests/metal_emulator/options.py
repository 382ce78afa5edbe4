"""How kernels are run, and a record of those that were; both as context managers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from .compile import Contract

Order = Literal["forward", "reverse", "random"]


@dataclass(frozen=True)
class Options:
    """How each kernel is run."""

    # Threads run in each of these orders, and the outputs have to be the same bits.
    orders: tuple[Order, ...] = ("forward", "reverse", "random")
    # Apple's compiler makes a * b + c one fma; "off" shows what a result owes to that.
    contract: Contract = "fast"
    # Elements by which each input lies off a 256-byte boundary, as a slice of an array may.
    misalign: int = 0
    # CPU seconds of one run.
    timeout: float = 120.0
    # Outputs of which some bytes are never written are let through.
    allow_unwritten: bool = False


@dataclass(frozen=True)
class Stats:
    """What the last run of a kernel did."""

    accesses: int
    switches: int
    threadgroup_bytes: int
    partial_simd_ops: int  # SIMD-group functions in which some lanes took no part
    compile_seconds: float  # 0.0 where the kernel was compiled before
    run_seconds: float  # of all orders together


@dataclass(frozen=True)
class Launch:
    """One call of a kernel. Arrays are (dtype, shape)."""

    name: str
    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, tuple[int, ...]], ...]
    copied: tuple[str, ...]  # inputs that MLX copies first, with a launch each
    stats: Stats


_options = Options()
_records: list[list[Launch]] = []


def current_options() -> Options:
    """What is in force, in every thread."""
    return _options


@contextmanager
def emulator_options(
    *,
    orders: tuple[Order, ...] | None = None,
    contract: Contract | None = None,
    misalign: int | None = None,
    timeout: float | None = None,
    allow_unwritten: bool | None = None,
) -> Iterator[Options]:
    """Run kernels in another way while this is open; what is not named stays as it is."""
    global _options
    before = _options
    _options = changed(before, orders, contract, misalign, timeout, allow_unwritten)
    try:
        yield _options
    finally:
        _options = before


def changed(
    options: Options,
    orders: tuple[Order, ...] | None,
    contract: Contract | None,
    misalign: int | None,
    timeout: float | None,
    allow_unwritten: bool | None,
) -> Options:
    """The same options but for those that are given."""
    return replace(
        options,
        orders=options.orders if orders is None else orders,
        contract=options.contract if contract is None else contract,
        misalign=options.misalign if misalign is None else misalign,
        timeout=options.timeout if timeout is None else timeout,
        allow_unwritten=options.allow_unwritten if allow_unwritten is None else allow_unwritten,
    )


@contextmanager
def record_launches() -> Iterator[list[Launch]]:
    """Collect every kernel that runs while this is open, in every thread."""
    launches: list[Launch] = []
    _records.append(launches)
    try:
        yield launches
    finally:
        _records[:] = [record for record in _records if record is not launches]


def add_launch(launch: Launch) -> None:
    """Tell all who record."""
    for record in _records:
        record.append(launch)
