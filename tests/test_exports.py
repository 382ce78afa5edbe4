"""What the package offers by name, and that it knows its own version."""

from __future__ import annotations

import re

import mlx_qwenvl
from tests.command_lines import ROOT, run


def test_exports_are_sorted_and_there() -> None:
    assert sorted(mlx_qwenvl.__all__) == mlx_qwenvl.__all__
    assert len(set(mlx_qwenvl.__all__)) == len(mlx_qwenvl.__all__)
    for name in mlx_qwenvl.__all__:
        assert getattr(mlx_qwenvl, name) is not None


def test_everything_public_is_exported() -> None:
    """Submodules aside, a name without an underscore is either offered or hidden."""
    public = set(mlx_qwenvl._HOMES) | {
        name
        for name, value in vars(mlx_qwenvl).items()
        if not name.startswith("_") and not hasattr(value, "__path__") and _is_ours(value)
    }
    assert public == set(mlx_qwenvl.__all__) - {"__version__"}


def test_every_error_is_a_qwenvl_error() -> None:
    from mlx_qwenvl import errors

    for name in errors.__all__:
        assert issubclass(getattr(mlx_qwenvl, name), mlx_qwenvl.QwenVLError)


def test_version_is_the_same_everywhere() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r'^version = "(.+)"$', project, re.M) == [mlx_qwenvl.__version__]
    newest = re.search(r"^## (\S+)", changes, re.M)
    assert newest is not None and newest[1] == mlx_qwenvl.__version__
    assert run("-m", "mlx_qwenvl", "--version").out == f"{mlx_qwenvl.__version__}\n"


def _is_ours(value: object) -> bool:
    return str(getattr(value, "__module__", "")).startswith("mlx_qwenvl")
