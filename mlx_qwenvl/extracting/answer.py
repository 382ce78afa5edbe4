"""The data of an answer that was given a form."""

from __future__ import annotations

import json
from typing import Any

from mlx_qwenvl.engine.reply import Reply
from mlx_qwenvl.errors import QwenVLError


def read_answer(reply: Reply) -> Any:
    """What an answer in JSON says.

    Raises:
        QwenVLError: It was cut off before its end; the message holds what came.
    """
    try:
        return json.loads(reply.text)
    except ValueError:
        count = reply.usage.completion_tokens
        raise QwenVLError(
            f"the answer was cut off after {count} tokens, raise --max-tokens; "
            f"it began {reply.text!r}"
        ) from None
