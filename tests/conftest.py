"""What all tests share: a clean environment, the tiny random model and the embedded one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_qwenvl import QwenVL, load
from tests.golden.tiny import write_checkpoint

VARIABLES = (
    "MLX_QWENVL_MODEL",
    "MLX_QWENVL_KERNELS",
    "MLX_QWENVL_PAD_MLP",
    "MLX_QWENVL_DISK_CACHE",
    "MLX_QWENVL_MEMORY_LIMIT",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "HF_TOKEN",
)


@pytest.fixture(autouse=True)
def clean_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No setting of whoever runs the tests reaches them, and nothing of theirs is written."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.setenv("HF_HOME", str(home / "huggingface"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2-VL of true architecture with random weights, as a folder."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> QwenVL:
    """The same, loaded in float32."""
    return load(tiny_folder, dtype="float32")


@pytest.fixture(scope="session")
def demo() -> Iterator[QwenVL]:
    """The embedded model."""
    yield load("demo", dtype="float32", prefix_bytes=0, feature_bytes=0)
