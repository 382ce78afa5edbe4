"""The members' tiny checkpoints, loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from mlx_qwenvl import QwenVL, load
from tests.golden.younger import MEMBERS, write_younger


@pytest.fixture(params=MEMBERS)
def member(request: pytest.FixtureRequest) -> str:
    """Each of the younger siblings."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def younger(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], QwenVL]:
    """A member's tiny checkpoint in float32, with its tied or its untied head."""
    folder = tmp_path_factory.mktemp("younger")

    @cache
    def loaded(member: str, tied: bool = True) -> QwenVL:
        return load(write_younger(folder / f"{member}-{tied}", member, tied=tied), dtype="float32")

    return loaded


@pytest.fixture
def folder(member: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A member's tiny checkpoint as a folder of the hub."""
    return write_younger(tmp_path_factory.mktemp("hub") / member, member)
