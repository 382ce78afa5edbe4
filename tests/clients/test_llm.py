"""The `llm` command: one YAML file, then questions with attachments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.asking import GREETED, GREETING, PICTURES, QUESTION, foreign
from tests.live import Live

foreign("llm")


@pytest.fixture
def home(tmp_path: Path, live: Live) -> Path:
    model = {
        "model_id": "local",
        "model_name": "demo",
        "api_base": live.v1,
        "vision": True,
        "supports_schema": True,
        "can_stream": True,
    }
    # JSON is YAML.
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]), encoding="utf-8")
    return tmp_path


def ask(home: Path, *arguments: str) -> str:
    environment = {
        **{key: value for key, value in os.environ.items() if "proxy" not in key.lower()},
        "LLM_USER_PATH": str(home),
        "LLM_LOAD_PLUGINS": "",
    }
    done = subprocess.run(
        [sys.executable, "-m", "llm", "-m", "local", "-n", "-o", "temperature", "0", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("more", [[], ["--no-stream"]])
def test_a_question_is_answered(home: Path, more: list[str]) -> None:
    assert ask(home, *more, GREETING) == GREETED


def test_an_attachment_is_seen(home: Path) -> None:
    # It comes behind the question, where the embedded model describes it at more length.
    assert ask(home, QUESTION, "-a", str(PICTURES / "shapes.png")) == (
        "The image shows two shapes on a white background. There is a red circle at the top left. "
        "There is a blue square at the right."
    )


def test_a_schema_is_kept_to(home: Path) -> None:
    properties = {"sure": {"type": "boolean"}, "side": {"enum": ["left", "right"]}}
    schema = {
        "type": "object",
        "properties": properties,
        "required": ["sure", "side"],
        "additionalProperties": False,
    }
    answer = json.loads(ask(home, GREETING, "--schema", json.dumps(schema)))
    assert answer["side"] in ("left", "right") and isinstance(answer["sure"], bool)
