"""Metal without a Mac: our own launchers, with `mx.fast.metal_kernel` emulated in place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import mlx.core as mx
import pytest

from mlx_qwenvl.kernels import add_rms_norm, rotate_qkv, rotate_vision
from tests.metal_emulator import Launch, metal_kernel, record_launches

MODULES = (rotate_vision, rotate_qkv, add_rms_norm)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Launch]]:
    """Kernels run in emulation, and each launch is written down."""
    monkeypatch.setattr(mx.fast, "metal_kernel", metal_kernel)
    for module in MODULES:  # a copy is built anew, with what stands in for Metal
        monkeypatch.setattr(module, "KERNEL", replace(module.KERNEL))
    with record_launches() as recorded:
        yield recorded
