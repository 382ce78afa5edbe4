"""Every script of examples/ runs, and says what its picture shows."""

from __future__ import annotations

import os
import plistlib
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlx_qwenvl.errors import FetchError
from mlx_qwenvl.inputs import fetch
from server import options
from server.settings import Settings
from tests.clients.asking import PICTURES, SHOWN
from tests.live import Live, serve

EXAMPLES = PICTURES.parent
SCREENSHOT = EXAMPLES / "shortcuts" / "describe_screenshot.sh"
PLIST = EXAMPLES / "launchd" / "org.mlx-qwenvl.server.plist"
LABEL = "org.mlx-qwenvl.server"
STOP = 'The image shows the text "STOP".'

# What each script prints, in its order.
ALONE = {
    "python_api.py": [SHOWN["shapes.png"], r"36 of \d+ prompt tokens", r"after \d"],
    "streaming.py": ["three shapes", "green triangle", "purple heart", r"\d+ tokens, \d+ a second"],
    "conversation.py": [SHOWN["star.png"], "green", r"\n\(\d\d of", "328"],
    "runner_api.py": [STOP, r"Usage {\n    completion_tokens: \d+,"],
    "builder_api.py": [SHOWN["star.png"], r"\d+ prompt tokens", r"\d+ answer tokens"],
    "quantize_in_place.py": [
        rf"{name} +\d+\.\d\d MB  {SHOWN['shapes.png']}" for name in ("as stored", "8bit", "4bit")
    ],
    "several_quantizations.py": [f"{n}bit: {SHOWN['shapes.png']}" for n in (4, 6, 8)],
    "topology.py": ["embedding: 6", "layer 0: 8", "layer 1: 8", "layer 2: 4", SHOWN["shapes.png"]],
}
OVER_HTTP = {
    "http_url.py": [SHOWN["shapes.png"]],
    "http_path.py": [SHOWN["heart.png"]],
    "http_base64.py": [SHOWN["star.png"], r"\d+ tokens a second"],
}
WITH_A_TEST_OF_THEIR_OWN = {
    "interactive.sh",
    "topology.yml",
    "launchd/install.py",
    "launchd/org.mlx-qwenvl.server.plist",
    "shortcuts/describe_screenshot.sh",
}
OTHERS = {"__init__.py", "README.md"}
KEPT_ELSEWHERE = {"images", "train_demo"}  # pictures, and what test_demo.py looks at


def test_every_example_is_tested_and_named() -> None:
    found = {
        path.relative_to(EXAMPLES).as_posix()
        for path in EXAMPLES.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".ipynb"
    }
    found = {name for name in found if name.partition("/")[0] not in KEPT_ELSEWHERE}
    assert found == {*ALONE, *OVER_HTTP, *WITH_A_TEST_OF_THEIR_OWN, *OTHERS}
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for name in found - OTHERS:
        assert f"]({name})" in readme or f"]({name.partition('/')[0]})" in readme, name


@pytest.mark.parametrize(
    "target",
    re.findall(r"\]\(([^)#]+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")),
)
def test_a_link_of_the_list_leads_to_a_file(target: str) -> None:
    assert (EXAMPLES / target).exists()


@pytest.fixture
def script(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., str]:
    """Runs a script in this process, from a folder that is not the checkout; gives its stdout."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> str:
        path = str(EXAMPLES / name)
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        runpy.run_path(path, run_name="__main__")
        return capfd.readouterr().out

    return run


def assert_said(expected: list[str], out: str) -> None:
    """All is there, one after the other."""
    pattern = ".*".join(part if "\\" in part else re.escape(part) for part in expected)
    assert re.search(pattern, out, flags=re.DOTALL), out


@pytest.mark.parametrize("name", ALONE)
def test_a_script_runs_alone(name: str, script: Callable[..., str]) -> None:
    assert_said(ALONE[name], script(name))


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serve(Settings(image_root=PICTURES)) as server:
        yield server


@pytest.mark.parametrize("name", OVER_HTTP)
def test_a_script_asks_a_server(
    name: str, script: Callable[..., str], live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "http_url.py":
        pytest.importorskip("openai", reason="openai is not installed: pip install '.[clients]'")
    # What the page's URL shows is a mountain, which the embedded model has never seen.
    monkeypatch.setattr(fetch, "fetch", lambda url, **_: (PICTURES / "shapes.png").read_bytes())
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    assert_said(OVER_HTTP[name], script(name, live.v1))


@pytest.mark.parametrize("name", OVER_HTTP)
def test_without_a_server_a_script_says_how_to_start_it(
    name: str, script: Callable[..., str]
) -> None:
    if name == "http_url.py":
        pytest.importorskip("openai", reason="openai is not installed: pip install '.[clients]'")
    with pytest.raises(
        SystemExit, match=r"^nothing listens at .*; first: mlx-qwenvl serve "
    ) as end:
        script(name, "http://127.0.0.1:9/v1")
    command = str(end.value).partition("mlx-qwenvl serve ")[2]
    source = (EXAMPLES / name).read_text(encoding="utf-8")
    assert f"    mlx-qwenvl serve {command}\n" in source
    options.parser("serve").parse_args(command.split())


def test_a_picture_that_cannot_be_fetched_is_one_line(
    script: Callable[..., str], live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai", reason="openai is not installed: pip install '.[clients]'")

    def fail(url: str, **_: object) -> bytes:
        raise FetchError(f"{url}: the host name does not resolve")

    monkeypatch.setattr(fetch, "fetch", fail)
    with pytest.raises(SystemExit, match=r"^Error code: 400 - .*: the host name does not resolve$"):
        script("http_url.py", live.v1)


def test_a_server_without_a_folder_says_so_through_the_script(
    script: Callable[..., str],
) -> None:
    with (
        serve(Settings()) as closed,
        pytest.raises(SystemExit, match="only in a folder that the server was given"),
    ):
        script("http_path.py", closed.v1)


def program(folder: Path, name: str, text: str) -> Path:
    """A stand-in for a program, to be put first on the PATH."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder at the front of the PATH that has `mlx-qwenvl`."""
    folder = tmp_path / "bin"
    program(folder, "mlx-qwenvl", f'exec "{sys.executable}" -m mlx_qwenvl "$@"')
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    return folder


def test_the_scripted_conversation_is_answered(path: Path) -> None:
    done = subprocess.run(
        [EXAMPLES / "interactive.sh"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert_said(["Hello!", SHOWN["shapes.png"], "The circle is red."], done.stdout)


@pytest.fixture
def mac(path: Path, tmp_path: Path) -> Path:
    """What the screenshot script calls on a Mac; what came of it lies in the folder that is given.

    `screencapture` takes the picture `shot.png` there, or none, as after Escape.
    """
    folder = tmp_path / "mac"
    folder.mkdir()
    program(path, "screencapture", f'shift 2; cp "{folder}/shot.png" "$1" 2>/dev/null')
    program(path, "pbcopy", f'cat >"{folder}/clipboard"')
    program(
        path,
        "osascript",
        f'while [ "$1" != -- ]; do shift; done; printf %s "$2" >"{folder}/notification"',
    )
    return folder


def screenshot(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCREENSHOT, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_a_screenshot_is_described_in_clipboard_and_notification(mac: Path) -> None:
    shutil.copy(PICTURES / "heart.png", mac / "shot.png")
    done = screenshot("What is shown in this image?")
    assert (done.returncode, done.stdout) == (0, SHOWN["heart.png"] + "\n"), done.stderr
    assert (mac / "clipboard").read_text() == SHOWN["heart.png"] + "\n"
    assert (mac / "notification").read_text() == SHOWN["heart.png"]


def test_escape_ends_it_without_a_word(mac: Path) -> None:
    done = screenshot()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (mac / "clipboard").exists() and not (mac / "notification").exists()


def test_what_goes_wrong_is_notified_and_leaves_the_clipboard_alone(mac: Path) -> None:
    (mac / "shot.png").write_text("no picture", encoding="utf-8")
    done = screenshot()
    assert done.returncode == 1 and done.stdout == ""
    assert (mac / "notification").read_text() == done.stderr.strip()
    assert done.stderr.startswith("mlx-qwenvl generate: ")
    assert not (mac / "clipboard").exists()


def test_nothing_of_a_screenshot_stays_on_the_disk(
    mac: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    shutil.copy(PICTURES / "heart.png", mac / "shot.png")
    assert screenshot("What is it?").returncode == 0
    assert list(scratch.iterdir()) == []


def test_the_agents_settings_are_those_of_a_server_that_is_kept_alive() -> None:
    settings = plistlib.loads(PLIST.read_bytes())
    assert settings["Label"] == LABEL == PLIST.stem
    name, command, *arguments = settings["ProgramArguments"]
    assert (Path(name).name, command) == ("mlx-qwenvl", "serve")
    chosen, _ = options.read(options.parser("serve").parse_args(arguments))
    assert (chosen.host, chosen.port, chosen.idle_unload_s) == ("127.0.0.1", 1234, 600)
    assert settings["RunAtLoad"] is True
    # A server that was asked to end does so with 0 and stays away; see docs/server.md.
    assert settings["KeepAlive"] == {"SuccessfulExit": False}
    assert settings["ExitTimeOut"] > chosen.drain_s


def test_the_agent_is_installed_with_absolute_paths(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: Callable[..., str],
) -> None:
    home = tmp_path / "A & B <home>"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(sys, "executable", str(path / "python"))
    program(path, "launchctl", f'echo "$@" >>"{tmp_path}/launchctl"; [ "$1" = bootstrap ]')
    out = script("launchd/install.py")
    agent = home / "Library" / "LaunchAgents" / PLIST.name
    settings = plistlib.loads(agent.read_bytes())
    assert settings["ProgramArguments"][0] == str(path / "mlx-qwenvl")
    log = home / "Library" / "Logs" / "mlx-qwenvl.log"
    assert settings["StandardOutPath"] == settings["StandardErrorPath"] == str(log)
    assert log.parent.is_dir()
    domain = f"gui/{os.getuid()}"
    assert (tmp_path / "launchctl").read_text().splitlines() == [
        f"bootout {domain}/{LABEL}",
        f"bootstrap {domain} {agent}",
    ]
    assert "ABSOLUTE" not in agent.read_text(encoding="utf-8")
    assert f"launchctl bootout {domain}/{LABEL}" in out


def test_an_agent_that_cannot_be_installed_is_told(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Callable[..., str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(SystemExit, match="mlx-qwenvl is missing; install"):
        script("launchd/install.py")
    monkeypatch.setattr(sys, "executable", str(path / "python"))
    program(path, "launchctl", "exit 5")
    with pytest.raises(SystemExit, match=r"launchctl took .* not"):
        script("launchd/install.py")
