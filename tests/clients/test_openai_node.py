"""OpenAI's Node SDK. `.ci/run` installs it: `npm ci` in tests/clients/node, where npm is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.asking import SHOWN, data_url
from tests.live import Live

FOLDER = Path(__file__).parent / "node"


@pytest.fixture(scope="module")
def heard(live: Live) -> dict[str, Any]:
    """What the script was told."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    if not (FOLDER / "node_modules" / "openai").is_dir():
        pytest.skip("the Node SDK is not installed: npm ci --prefix tests/clients/node")
    done = subprocess.run(
        [node, "ask.mjs", live.v1, data_url("shapes.png")],
        cwd=FOLDER,
        env={"PATH": os.environ["PATH"]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_it_sees_a_picture_whole_and_streamed(heard: dict[str, Any]) -> None:
    assert heard["whole"] == "".join(heard["pieces"]) == SHOWN["shapes.png"]
    assert len(heard["pieces"]) > 3
    for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert heard["usage"][count] == heard["streamed_usage"][count] > 0


def test_it_gets_objects_of_its_schema_and_calls_of_its_tool(heard: dict[str, Any]) -> None:
    assert heard["formed"]["shape"] in ("circle", "square")
    assert heard["called"]["name"] == "look"
    assert json.loads(heard["called"]["arguments"])["shape"] in ("circle", "square")


def test_it_gets_a_response(heard: dict[str, Any]) -> None:
    assert heard["response"] == SHOWN["shapes.png"]


def test_it_lists_the_model(heard: dict[str, Any], live: Live) -> None:
    assert heard["models"] == [live.engine.name]


def test_it_knows_what_was_wrong(heard: dict[str, Any]) -> None:
    assert heard["error"] == {"kind": "BadRequestError", "status": 400, "param": "temperature"}
