"""The command line: what it means, and that whatever is wrong is one line before anything runs."""

from __future__ import annotations

import os
import socket
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from mlx_qwenvl import QwenVL
from mlx_qwenvl.errors import CheckpointError
from server.__main__ import main
from server.options import Loading, parser, read
from server.settings import Settings
from tests.live import kept_loggers

# What a server of one machine needs no flag for.
FIXED = {
    "api_keys",
    "fetch_timeout_s",
    "head_timeout_s",
    "body_timeout_s",
    "write_timeout_s",
    "keepalive_s",
}


def chosen(*argv: str) -> tuple[Settings, Loading]:
    return read(parser("serve").parse_args(argv))


@pytest.fixture
def never_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is loaded, and nothing is downloaded."""

    def load(*_: Any, **__: Any) -> QwenVL:
        raise AssertionError("something is loaded")

    monkeypatch.setattr("server.__main__.load", load)


def test_without_flags_the_settings_are_the_usual_ones() -> None:
    settings, loading = chosen()
    assert settings == Settings()
    assert loading.model == "demo" and not any((loading.quantize, loading.draft, loading.variant))


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--host", "::1"], "host", "::1"),
        (["--port", "1234"], "port", 1234),
        (["--allowed-host", "mac.local", "--allowed-host", "mac"], "allowed_hosts",
         ("mac.local", "mac")),
        (["--allowed-origin", "https://a.example"], "allowed_origins", ("https://a.example",)),
        (["--image-root", "/"], "image_root", Path("/")),
        (["--no-remote-images"], "remote_images", False),
        (["--strict-model"], "strict_model", True),
        (["--max-body-bytes", "5"], "max_body_bytes", 5),
        (["--max-messages", "5"], "max_messages", 5),
        (["--max-images", "0"], "max_images", 0),
        (["--max-image-bytes", "5"], "max_image_bytes", 5),
        (["--max-image-pixels", "5"], "max_image_pixels", 5),
        (["--max-total-bytes", "5"], "max_total_bytes", 5),
        (["--max-total-pixels", "5"], "max_total_pixels", 5),
        (["--max-schema-bytes", "5"], "max_schema_bytes", 5),
        (["--max-concurrency", "5"], "max_concurrency", 5),
        (["--max-queue", "0"], "max_queue", 0),
        (["--max-tokens", "5"], "max_tokens", 5),
        (["--max-connections", "5"], "max_connections", 5),
        (["--kv-bits", "8"], "kv_bits", 8),
        (["--drain", "0"], "drain_s", 0.0),
        (["--idle-unload", "90"], "idle_unload_s", 90.0),
        (["--idle-unload", "10m"], "idle_unload_s", 600.0),
        (["--idle-unload", "1.5h"], "idle_unload_s", 5400.0),
        (["--hang", "30s"], "hang_s", 30.0),
        (["--on-crash", "exit"], "on_crash", "exit"),
        (["--verbose"], "log_requests", True),
    ],
)  # fmt: skip
def test_a_flag_sets_its_setting_and_no_other(argv: list[str], name: str, value: Any) -> None:
    settings, _ = chosen(*argv)
    usual = Settings()
    differing = {
        f.name for f in fields(usual) if getattr(settings, f.name) != getattr(usual, f.name)
    }
    assert differing == {name} and getattr(settings, name) == value


def test_every_setting_has_a_flag_or_needs_none() -> None:
    destinations = {action.dest for action in parser("serve")._actions}
    assert {f.name for f in fields(Settings)} - destinations == FIXED
    assert {f.name for f in fields(Loading)} <= destinations


def test_help_tells_each_flag_and_its_usual_value(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    usual = Settings()
    for action in parser("serve")._actions:
        assert action.help and action.option_strings[-1] in told
    for name in ("host", "port", "max_images", "max_concurrency", "max_queue", "on_crash"):
        assert f"({getattr(usual, name)})" in told


@pytest.mark.parametrize(
    "argv",
    [
        ["--port", "65536"],
        ["--port", "-1"],
        ["--port", "http"],
        ["--host", "0.0.0.0"],
        ["--host", "192.168.1.2"],
        ["--idle-unload", "soon"],
        ["--idle-unload", "-5"],
        ["--idle-unload", "nan"],
        ["--idle-unload", "1e9"],
        ["--drain", ""],
        ["--hang", "10 m"],
        ["--max-concurrency", "0"],
        ["--max-queue", "-1"],
        ["--max-tokens", "0"],
        ["--max-tokens", "1.5"],
        ["--max-images", "-1"],
        ["--max-body-bytes", "0"],
        ["--kv-bits", "3"],
        ["--on-crash", "ignore"],
        ["--api-key-file", "/nowhere/keys"],
        ["--image-root", "/nowhere/pictures"],
        ["--api-key", "secret-on-the-command-line"],
        ["--unknown"],
        ["a-word"],
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("never_loads")
def test_a_value_that_makes_no_sense_is_one_line(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["--model", "demo", *argv])
    except SystemExit as left:
        code = int(left.code or 0)
    told = capsys.readouterr()
    assert code == 2 and told.out == ""
    assert told.err.count("\n") == 1 and "Traceback" not in told.err
    assert argv[0] in told.err or "API key" in told.err
    assert "secret" not in told.err or argv[0] == "--api-key"


@pytest.mark.usefixtures("never_loads")
def test_a_port_that_is_taken_is_told_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["--model", "demo", "--port", port]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"127.0.0.1:{port} cannot be listened on" in told


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (CheckpointError("there is no model nowhere"), "there is no model nowhere"),
        (ValueError("a fault of ours"), "the engine failed: ValueError; see above"),
    ],
)
def test_a_model_that_cannot_be_loaded_ends_the_process_and_frees_its_port(
    error: Exception,
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*_: Any, **__: Any) -> QwenVL:
        raise error

    monkeypatch.setattr("server.__main__.load", load)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with kept_loggers():
        assert main(["--model", "demo", "--port", str(port)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"mlx-qwenvl serve: {told}"
    socket.create_server(("127.0.0.1", port)).close()


def test_who_chose_no_model_is_told_which_one_answers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[str] = []
    monkeypatch.setattr("server.process.serve", lambda _load, _settings, name: served.append(name))
    assert main([]) == main(["--model", "demo"]) == 0
    assert served == ["demo", "demo"]
    assert capsys.readouterr().err.count("No model chosen") == 1


def test_what_is_loaded_is_what_the_flags_say(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def load(model: str, **options: Any) -> None:
        asked.update(options, model=model)

    monkeypatch.setattr("server.__main__.load", load)
    monkeypatch.setattr("server.process.serve", lambda load, _settings, _name: load())
    argv = "--model 2b --quantize 4bit --dtype float16 --draft demo --disk-cache --variant q8"
    assert main(argv.split()) == 0
    del asked["progress"]
    assert asked == {
        "model": "2b",
        "quantize": "4bit",
        "topology": None,
        "variant": "q8",
        "dtype": "float16",
        "draft": "demo",
        "disk_cache": True,
        "ranks": None,
    }


def test_keys_come_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the kitchen\nkey-of-the-kitchen\n\nkey-of-the-garden\n")
    os.chmod(file, 0o600)
    monkeypatch.setenv("MLX_QWENVL_API_KEY", "key-of-the-environment")
    settings, _ = chosen("--host", "0.0.0.0", "--api-key-file", str(file))
    assert settings.api_keys == {
        "key-of-the-kitchen",
        "key-of-the-garden",
        "key-of-the-environment",
    }
    assert "key-of" not in repr(settings)
