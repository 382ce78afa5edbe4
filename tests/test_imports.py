"""What importing and answering bring in: little, silently, and OpenBLAS before MLX."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import pytest

from tests.command_lines import GENERATE, SHAPES, run

HEAVY = ("torch", "transformers", "mlx_lm")
# Only for what a local answer does not do: URLs, downloads, the server, images of phones.
ELSEWHERE = ("httpx2", "httpcore2", "huggingface_hub", "fastapi", "uvicorn", "tqdm", "pillow_heif")

ANSWER = f"""
import json, sys
from mlx_qwenvl import load
text = load("demo").generate("Describe it.", images=[{str(SHAPES)!r}], max_tokens=3).text
print(json.dumps([text, sorted(sys.modules)]))
"""

LOADED_LIBRARIES = """
import mlx_qwenvl, mlx.core as mx
mx.eval(mx.ones((4, 4)) @ mx.ones((4, 4)))
print(mlx_qwenvl.blas.LOADED, open("/proc/self/maps").read())
"""


def _has_openblas() -> bool:
    try:
        ctypes.CDLL("libopenblas.so.0")
    except OSError:
        return False
    return True


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Macs have Accelerate")
with_openblas = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not _has_openblas(), reason="needs OpenBLAS"
)


def test_an_answer_needs_no_framework_and_no_network_library() -> None:
    ran = run("-c", ANSWER)
    assert (ran.code, ran.err) == (0, "")
    text, modules = json.loads(ran.out)
    assert text
    loaded = {name.split(".")[0] for name in modules}
    assert loaded.isdisjoint(HEAVY + ELSEWHERE)
    assert not [name for name in modules if name.startswith("mlx_qwenvl.distributed")]


def test_import_prints_nothing_and_leaves_no_files(tmp_path: Path) -> None:
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    for folder in (home, cwd):
        folder.mkdir()
    env = {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "HF_HOME": str(home / "huggingface"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    ran = run("-c", "import mlx_qwenvl", cwd=cwd, env=env)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert [*home.rglob("*"), *cwd.rglob("*")] == []


@pytest.mark.parametrize(
    "arguments",
    [
        (*GENERATE, "--model", "demo", "--image", SHAPES),
        ("-m", "mlx_qwenvl", "generate", "--model", "demo", "--image", SHAPES),
        ("-m", "mlx_qwenvl.use"),
        ("-m", "server", "--help"),
        ("-m", "convert", "--help"),
    ],
    ids=["generate", "command", "use", "server", "convert"],
)
def test_command_lines_run_with_warnings_as_errors(arguments: tuple[str | Path, ...]) -> None:
    """Among them the one that a module gives which is run and was imported already."""
    ran = run("-W", "error", *arguments)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out


@with_openblas
def test_openblas_is_there_before_mlx() -> None:
    loaded, libraries = run("-c", LOADED_LIBRARIES).out.split(" ", 1)
    assert loaded == "True"
    assert "libopenblas" in libraries


@with_openblas
@pytest.mark.parametrize(("given", "found"), [(None, "4"), ("20", "20")])
def test_idle_threads_of_openblas_sleep_unless_somebody_says_otherwise(
    given: str | None, found: str
) -> None:
    env = {} if given is None else {"OPENBLAS_THREAD_TIMEOUT": given}
    program = "import mlx_qwenvl, os; print(os.environ['OPENBLAS_THREAD_TIMEOUT'])"
    assert run("-c", program, env=env).out.strip() == found


@linux
def test_openblas_can_be_turned_off_and_mlx_works_without_it() -> None:
    env = {"MLX_QWENVL_OPENBLAS": "off"}
    loaded, libraries = run("-c", LOADED_LIBRARIES, env=env).out.split(" ", 1)
    assert loaded == "False"
    assert "libopenblas" not in libraries
    ran = run(*GENERATE, "--model", "demo", "--image", SHAPES, env=env)
    assert (ran.code, ran.err) == (0, "")
    assert "circle" in ran.out


@linux
def test_openblas_is_left_alone_when_mlx_came_first() -> None:
    ran = run("-c", f"import mlx.core{LOADED_LIBRARIES}")
    assert (ran.code, ran.out.split(" ", 1)[0]) == (0, "False")


def test_a_system_without_openblas_gives_the_same_answer(tmp_path: Path) -> None:
    """Where the library cannot be found, nothing is said and everything works."""
    program = (
        "import ctypes, runpy, sys\n"
        "def missing(name, *rest, **options): raise OSError(name)\n"
        "ctypes.CDLL = missing\n"
        f"sys.argv = ['generate', '--model', 'demo', '--image', {str(SHAPES)!r}]\n"
        "runpy.run_module('mlx_qwenvl.generate', run_name='__main__')\n"
    )
    ran = run("-c", program, cwd=tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert "circle" in ran.out
