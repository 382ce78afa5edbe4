"""The README's promises: its first command, the answer beside it, its Python, its links."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def test_the_first_command_gives_the_answer_beside_it() -> None:
    install, command = blocks("sh")[0].strip().split(" && ")
    assert install == "pip install -e ."
    arguments = shlex.split(command)
    assert arguments[0] == "python"
    done = subprocess.run(
        [sys.executable, *arguments[1:]],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    shown = blocks("text")[0]
    assert done.stdout == shown


def test_the_python_runs_as_it_stands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    scope: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), scope)
    assert "reply" in scope and capsys.readouterr().out


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)", README))
def test_a_link_leads_to_a_file(target: str) -> None:
    assert (ROOT / target).exists()
