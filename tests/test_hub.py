"""Names become folders: what is asked of the Hub, what is kept, and what is said when it fails."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import termios
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from mlx_qwenvl import ModelNotFound, load
from mlx_qwenvl.weights.resolve import DEMO_FOLDER, repository_of, resolve_model
from mlx_qwenvl.weights.short_names import MODEL_NAMES, SHORT_NAMES
from tests.command_lines import GENERATE, PATIENCE, run, start
from tests.fake_hub import FakeHub, serving

NAME = "people/tiny-vl"
UNWANTED = {
    "pytorch_model.bin": b"a pickle",
    "modeling.py": b"raise SystemExit",
    "README.md": b"# Tiny",
    "onnx/model.onnx": b"another format",
}


@pytest.fixture
def hub(tiny_folder: Path) -> Iterator[FakeHub]:
    """A Hub with one repository, a tiny model with some files that nobody needs."""
    files = {file.name: file.read_bytes() for file in tiny_folder.iterdir()}
    with serving(FakeHub(NAME, files | UNWANTED)) as server:
        yield server


@pytest.fixture
def environment(hub: FakeHub, tmp_path: Path) -> dict[str, str]:
    """What sends another process to that Hub, with an empty cache."""
    return {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "huggingface"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


@pytest.fixture
def cache(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The same for this process, whose Hub client has read its environment long ago."""
    from huggingface_hub import constants

    files = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # bytes written at once
    return tmp_path / "cache"


# --- What is downloaded -------------------------------------------------------------------------


def test_download_is_complete_and_the_second_use_asks_nothing(
    hub: FakeHub, environment: dict[str, str], tiny_folder: Path
) -> None:
    command = (*GENERATE, "--model", NAME, "Hello", "--max-tokens", "4", "--temperature", "0")
    first = run(*command, env=environment)
    assert (first.code, first.err) == (0, "")
    assert first.out == run(*command[:3], tiny_folder, *command[4:]).out
    assert hub.requests
    hub.requests.clear()
    second = run(*command, env=environment)
    assert (second.code, second.out, second.err) == (0, first.out, "")
    assert hub.requests == []


def test_only_weights_and_their_descriptions_are_fetched(
    hub: FakeHub, cache: Path, tiny_folder: Path
) -> None:
    folder = resolve_model(NAME)
    got = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert got == {file.name for file in tiny_folder.iterdir()}
    assert not any(name in request for request in hub.requests for name in UNWANTED)
    for name in got:
        assert (folder / name).read_bytes() == (tiny_folder / name).read_bytes()


def test_downloaded_model_loads_by_name(cache: Path) -> None:
    assert load(NAME).name == NAME


def test_cut_connection_is_resumed_where_it_broke(
    hub: FakeHub, cache: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tiny_folder / "model.safetensors"
    hub.cuts["model.safetensors"] = [50_000]
    folder = resolve_model(NAME)
    assert hub.ranges and 0 < hub.ranges[0] <= 50_000
    assert (folder / "model.safetensors").read_bytes() == weights.read_bytes()
    assert capsys.readouterr() == ("", "")


def test_broken_off_download_is_not_taken_for_a_model_and_goes_on_next_time(
    hub: FakeHub, cache: Path
) -> None:
    def fetched() -> list[str]:
        return [path.rsplit("/", 1)[1] for path in hub.requests if f"GET /{NAME}" in path]

    hub.withheld.add("model.safetensors")
    with pytest.raises(ModelNotFound, match="cannot be downloaded"):
        resolve_model(NAME)
    before = set(fetched())
    hub.withheld.clear()
    hub.requests.clear()
    folder = resolve_model(NAME)
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert "model.safetensors" in fetched() and before.isdisjoint(fetched())


def test_interruption_ends_a_download_and_leaves_nothing_half_done(
    hub: FakeHub, environment: dict[str, str], tmp_path: Path
) -> None:
    hub.stalls = True
    with start("-m", "mlx_qwenvl", "use", NAME, env=environment) as process:
        assert hub.stalled.wait(PATIENCE)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (130, b"")
    assert errors.decode().splitlines() == ["mlx-qwenvl use: interrupted"]
    assert not list(tmp_path.rglob("model.safetensors"))


def test_terminal_sees_bars_that_end_before_the_next_line(environment: dict[str, str]) -> None:
    terminal, its_end = os.openpty()
    fcntl.ioctl(its_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with start("-m", "mlx_qwenvl", "use", NAME, env=environment, stderr=its_end) as process:
        os.close(its_end)
        seen = _read_terminal(terminal).decode()
        assert process.wait(PATIENCE) == 0
    os.close(terminal)
    before, said = seen.split(f"{NAME} answers from now on")
    assert "100%" in before and before.endswith("\r\n")
    assert said.count("\n") == 1 and "%" not in said


def _read_terminal(terminal: int) -> bytes:
    data = b""
    try:
        while part := os.read(terminal, 2**16):
            data += part
    except OSError:  # what Linux says once nobody writes any more
        pass
    return data


# --- What is said -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (HTTPStatus.UNAUTHORIZED, {"X-Error-Code": "GatedRepo"}, "hf auth login"),
        (HTTPStatus.FORBIDDEN, {"X-Error-Code": "GatedRepo"}, "accept its terms"),
        (HTTPStatus.UNAUTHORIZED, {"X-Error-Code": "RepoNotFound"}, "no such repository"),
        (HTTPStatus.UNAUTHORIZED, {}, r"answered 401 \(Unauthorized\); .*hf auth login"),
        (HTTPStatus.FORBIDDEN, {}, r"answered 403 \(Forbidden\)"),
        (HTTPStatus.NOT_FOUND, {"X-Error-Code": "RepoNotFound"}, "no such repository"),
        (HTTPStatus.NOT_FOUND, {"X-Error-Code": "RevisionNotFound"}, "answered 404"),
        (HTTPStatus.INTERNAL_SERVER_ERROR, {}, r"answered 500 \(Internal Server Error\)"),
    ],
)
def test_refusal_is_one_clear_line(
    hub: FakeHub,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    status: HTTPStatus,
    headers: dict[str, str],
    words: str,
) -> None:
    hub.refusal = status, headers
    with pytest.raises(ModelNotFound, match=words) as caught:
        resolve_model(NAME)
    message = str(caught.value)
    assert NAME in message and "\n" not in message
    assert capsys.readouterr() == ("", "")


def test_unknown_repository_is_one_line_of_the_command(environment: dict[str, str]) -> None:
    ran = run(*GENERATE, "--model", "people/nothing", "Hello", env=environment)
    assert (ran.code, ran.out, len(ran.err_lines)) == (1, "", 1)
    assert "people/nothing" in ran.err and "no such repository" in ran.err


def test_offline_uses_the_copy_and_says_when_there_is_none(
    hub: FakeHub, environment: dict[str, str]
) -> None:
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    command = (*GENERATE, "--model", NAME, "Hello", "--max-tokens", "2")
    before = run(*command, env=offline)
    assert (before.code, before.out, len(before.err_lines)) == (1, "", 1)
    assert "HF_HUB_OFFLINE is set" in before.err
    assert hub.requests == []
    assert run("-m", "mlx_qwenvl", "use", NAME, env=environment).code == 0
    hub.requests.clear()
    after = run(*command, env=offline)
    assert (after.code, after.err) == (0, "")
    assert hub.requests == []


def test_unreachable_hub_is_one_line(environment: dict[str, str]) -> None:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        nowhere = {"HF_ENDPOINT": f"http://127.0.0.1:{taken.getsockname()[1]}"}
        ran = run(*GENERATE, "--model", NAME, "Hello", env=environment | nowhere)
    assert (ran.code, ran.out, len(ran.err_lines)) == (1, "", 1)
    assert "cannot be reached" in ran.err


def test_pickles_are_not_fetched_and_the_lack_of_weights_is_told(
    hub: FakeHub, environment: dict[str, str]
) -> None:
    del hub.files["model.safetensors"]
    ran = run("-m", "mlx_qwenvl", "use", NAME, env=environment)
    assert (ran.code, ran.out, len(ran.err_lines)) == (1, "", 1)
    assert "holds no weights" in ran.err
    assert not any("pytorch_model.bin" in request for request in hub.requests)


# --- What names mean ----------------------------------------------------------------------------


def test_demo_is_inside_the_package() -> None:
    assert resolve_model("demo") == DEMO_FOLDER
    assert (DEMO_FOLDER / "model.safetensors").is_file()


def test_short_names_stand_for_the_community_folders() -> None:
    told = {
        "2b": "Qwen2-VL-2B-Instruct-4bit",
        "72b-4bit": "Qwen2-VL-72B-Instruct-4bit",
        "7b-8bit": "Qwen2-VL-7B-Instruct-8bit",
        "qwen2.5-vl-3b": "Qwen2.5-VL-3B-Instruct-4bit",
        "qwen2.5-vl-32b-8bit": "Qwen2.5-VL-32B-Instruct-8bit",
        "qwen3-vl-4b": "Qwen3-VL-4B-Instruct-4bit",
        "qwen3-vl-8b-thinking-8bit": "Qwen3-VL-8B-Thinking-8bit",
        "qwen3-vl-30b-a3b": "Qwen3-VL-30B-A3B-Instruct-4bit",
        "qwen3-vl-235b-a22b-3bit": "Qwen3-VL-235B-A22B-Instruct-3bit",
        "qwen3-vl-235b-a22b-thinking": "Qwen3-VL-235B-A22B-Thinking-3bit",
    }
    elders = {name: folder for name, folder in SHORT_NAMES.items() if not name.startswith("qwen")}
    stem = "mlx-community/Qwen2-VL-{}-Instruct-{}bit"
    assert elders == {
        size + tail: stem.format(size.upper(), bits)
        for size in ("2b", "7b", "72b")
        for tail, bits in (("", 4), ("-4bit", 4), ("-8bit", 8))
    }
    for name, folder in told.items():
        assert SHORT_NAMES[name] == repository_of(name) == f"mlx-community/{folder}"
    assert len(set(SHORT_NAMES.values())) == 36 and len(MODEL_NAMES) == 19
    assert {SHORT_NAMES[name] for name in MODEL_NAMES} <= set(SHORT_NAMES.values())


@pytest.mark.parametrize("short", SHORT_NAMES)
def test_what_goes_without_saying_may_be_said(short: str) -> None:
    """The hub's own name of a model leads to its conversion, with its bits and without."""
    repository = SHORT_NAMES[short]
    whole = repository.removeprefix("mlx-community/")
    if not short.endswith("bit"):
        whole = whole.rpartition("-")[0]
    assert repository_of(whole) == repository_of(whole.lower()) == repository


@pytest.mark.parametrize("name", ["qwen3-vl-30b-a3b-thinking-8bit", "qwen3-vl-7b", "3b", "2b-6bit"])
def test_what_is_not_published_has_no_short_name(name: str) -> None:
    with pytest.raises(ModelNotFound, match="7b-8bit, qwen3-vl-8b and what else"):
        repository_of(name)


@pytest.mark.parametrize("name", ["2b", "2B-8bit", "Qwen3-VL-4B-Thinking"])
def test_short_name_asks_for_its_repository(hub: FakeHub, cache: Path, name: str) -> None:
    repository = SHORT_NAMES[name.lower()]
    with pytest.raises(ModelNotFound, match=repository):
        resolve_model(name)
    assert hub.requests[0] == f"GET /api/models/{repository}/revision/main"


@pytest.mark.parametrize("name", ["nope", "Demo", "demo ", "./absent", "~/absent", "a/b/c", ""])
def test_name_that_is_nothing_asks_nobody_and_falls_back_to_nothing(
    hub: FakeHub, cache: Path, name: str
) -> None:
    with pytest.raises(ModelNotFound):
        resolve_model(name)
    assert hub.requests == []


def test_folder_goes_before_a_repository_of_its_name(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / NAME).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model(NAME) == Path(NAME)
    assert hub.requests == []


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve_model(os.path.join("~", "model")) == tmp_path / "model"
