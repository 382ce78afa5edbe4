"""A tiny member that thinks: its template opens thoughts, as those of the Thinking variants do."""

from __future__ import annotations

import json
from pathlib import Path

from tests.golden.tiny_files import LEARNED_TOKENS, TOKEN_ID
from tests.golden.younger import write_younger

OPEN_ID, CLOSE_ID = (LEARNED_TOKENS + len(TOKEN_ID) + index for index in range(2))


def write_thinking(folder: Path) -> Path:
    """Write it into an empty folder, which is given back."""
    folder = write_younger(folder, "qwen3_vl")
    raw = json.loads((folder / "tokenizer.json").read_text())
    for number, mark in ((OPEN_ID, "<think>"), (CLOSE_ID, "</think>")):
        token = raw["added_tokens"][-1] | {"id": number, "content": mark, "special": False}
        raw["added_tokens"].append(token)
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    opened = template.replace(
        "assistant\\n' }}{% endif %}", "assistant\\n<think>\\n' }}{% endif %}"
    )
    assert opened != template
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": opened}))
    return folder
