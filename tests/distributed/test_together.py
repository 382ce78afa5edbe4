"""Several real processes answer as one does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_qwenvl import load
from tests.distributed.checkpoints import with_more_heads
from tests.distributed.launching import ends, ranks
from tests.distributed.scenario import SCENARIOS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that four ranks can share."""
    return with_more_heads(tmp_path_factory.mktemp("four"), 2)


@pytest.mark.parametrize(
    ("name", "size", "recipe"),
    [("all", 2, "none"), ("all", 2, "4bit-g32"), ("turns", 2, "none"), ("few", 4, "nvfp4")],
)
def test_ranks_say_what_one_process_says(
    folder: Path, tmp_path: Path, name: str, size: int, recipe: str
) -> None:
    alone = SCENARIOS[name](load(folder, dtype="float32", quantize=recipe))
    command = ["-W", "error", "-m", "tests.distributed.scenario", name, str(folder), recipe]
    with ranks(size, command, tmp_path) as started:
        (code, told, errors), *others = ends(started)
    assert (code, errors) == (0, ""), errors
    assert json.loads(told) == alone
    assert others == [(0, "", "")] * (size - 1)
