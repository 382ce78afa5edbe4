"""Metal without a Mac: the project's own launchers, with `mx.fast.metal_kernel` emulated in place.

On a Mac the same tests launch the kernels on its GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from mlx_qwenvl.kernels import add_rms_norm, rotate_qkv, rotate_vision, sample
from tests.metal_emulator import Launch, metal_kernel, record_launches, unavailable

MODULES = (rotate_vision, rotate_qkv, add_rms_norm, sample)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Kernels run where they are launched; gives how often each one was."""
    counted: Counter[str] = Counter()
    if not mx.metal.is_available():
        skip_without_emulator()
    real: Any = mx.fast.metal_kernel if mx.metal.is_available() else metal_kernel

    def build(name: str, **arguments: Any) -> Callable[..., Any]:
        launch: Any = real(name=name, **arguments)

        def counting(**call: Any) -> Any:
            counted[name] += 1
            return launch(**call)

        return counting

    use(monkeypatch, build)
    return counted


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Launch]]:
    """Kernels run in emulation on a Mac too, and each launch is written down.

    For what only the emulator refuses or tells.
    """
    skip_without_emulator()
    use(monkeypatch, metal_kernel)
    with record_launches() as recorded:
        yield recorded


def use(monkeypatch: pytest.MonkeyPatch, build: Callable[..., Any]) -> None:
    monkeypatch.setattr(mx.fast, "metal_kernel", build)
    for module in MODULES:  # a copy is built anew
        monkeypatch.setattr(module, "KERNEL", replace(module.KERNEL))


def skip_without_emulator() -> None:
    if reason := unavailable():
        pytest.skip(reason)
