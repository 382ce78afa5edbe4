"""What is installed: one top-level module with everything in it, working away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.command_lines import PATIENCE, ROOT, SHAPES

LARGEST = 10 * 2**20  # bytes of a wheel, most of them the demo's weights
SOURCES = ("mlx_qwenvl", "server", "convert")
BUILT_FROM = (*SOURCES, "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built by way of the source archive from a clean copy of the tree."""
    tree = tmp_path_factory.mktemp("tree")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, tree / name)
    out = tmp_path_factory.mktemp("dist")
    isolation = ["--no-isolation"] if _builds_here() else []
    _quietly(sys.executable, "-m", "build", *isolation, "--outdir", out, tree)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripts of a fresh environment with the wheel in it; the dependencies are this Python's."""
    folder = tmp_path_factory.mktemp("environment")
    own_pip = find_spec("pip") is None  # as where uv made this environment; making one takes long
    venv.create(folder, with_pip=own_pip, symlinks=True)
    scheme = "venv" if "venv" in sysconfig.get_scheme_names() else "posix_prefix"  # before 3.11
    paths = sysconfig.get_paths(scheme, {"base": str(folder), "platbase": str(folder)})
    # Folders named in a .pth are searched after the environment's own and their .pth are not read,
    # so an editable install of the checkout does not come along.
    dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(paths["purelib"], "dependencies.pth").write_text("\n".join(sorted(dependencies)))
    scripts = Path(paths["scripts"])
    python = scripts / "python"
    pip = (python, "-m", "pip") if own_pip else (sys.executable, "-m", "pip", "--python", python)
    _quietly(*pip, "install", "--no-deps", "--no-index", wheel)
    return scripts


def test_wheel_has_one_top_level_module(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"mlx_qwenvl"}


def test_no_file_is_forgotten(wheel: Path) -> None:
    """Packages are listed by hand, so a new folder is easily left out."""
    expected = {_installed(file) for name in SOURCES for file in _files(ROOT / name)}
    with zipfile.ZipFile(wheel) as archive:
        assert expected <= set(archive.namelist())
    assert "mlx_qwenvl/demo/model.safetensors" in expected
    assert "mlx_qwenvl/server/__main__.py" in expected


def test_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < LARGEST


@pytest.mark.parametrize(
    "command",
    [
        ("python", "-m", "mlx_qwenvl.generate", "--model", "demo", "--image", SHAPES),
        ("mlx-qwenvl", "generate", "--model", "demo", "--image", SHAPES),
    ],
    ids=["module", "script"],
)
def test_installed_package_answers(
    scripts: Path, tmp_path: Path, command: tuple[str | Path, ...]
) -> None:
    out = _quietly(scripts / command[0], *command[1:], cwd=tmp_path)
    assert "circle" in out


@pytest.mark.parametrize("command", ["generate", "use", "convert", "serve"])
def test_installed_commands_explain_themselves(scripts: Path, tmp_path: Path, command: str) -> None:
    out = _quietly(scripts / "mlx-qwenvl", command, "--help", cwd=tmp_path)
    assert out.startswith(f"usage: mlx-qwenvl {command}")


@pytest.mark.parametrize("module", ["server", "convert"])
def test_wings_run_as_modules_of_the_package(scripts: Path, tmp_path: Path, module: str) -> None:
    out = _quietly(scripts / "python", "-m", f"mlx_qwenvl.{module}", "--help", cwd=tmp_path)
    assert out.startswith("usage: mlx-qwenvl ")


def test_installed_package_is_the_wheel_and_not_the_checkout(scripts: Path, tmp_path: Path) -> None:
    program = "import mlx_qwenvl; print(mlx_qwenvl.__file__)"
    place = _quietly(scripts / "python", "-c", program, cwd=tmp_path).strip()
    assert Path(place).is_relative_to(scripts.parent)


def _files(folder: Path) -> list[Path]:
    """What is to be installed of a folder: code, the typing mark, and the demo."""
    code = [file for file in folder.rglob("*.py") if "__pycache__" not in file.parts]
    return [*code, *folder.glob("py.typed"), *folder.glob("demo/*")]


def _installed(file: Path) -> str:
    name = file.relative_to(ROOT).as_posix()
    return name if name.startswith("mlx_qwenvl/") else f"mlx_qwenvl/{name}"


def _builds_here() -> bool:
    """Whether this environment has what the build needs; otherwise it is downloaded."""
    try:
        return int(version("setuptools").split(".")[0]) >= 77
    except PackageNotFoundError:
        return False


def _quietly(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command that must succeed and give its standard output."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=cwd,
        env=env,
        timeout=PATIENCE,
        encoding="utf-8",
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
