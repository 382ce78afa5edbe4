"""What an answer of a younger member is held to: the logits and tokens of a recording."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlx_qwenvl import QwenVL
from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.decode import decode
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.prefill import prefill
from mlx_qwenvl.engine.sampling import Sampler
from mlx_qwenvl.inputs.prompt import Prompt
from tests.test_parity import TOLERANCE


def hold_answer(
    vlm: QwenVL, prompt: Prompt, step: int, logits: np.ndarray, greedy: Sequence[int]
) -> None:
    """Read a prompt in slices of `step`; its last logits [n, V] and greedy tokens are recorded."""
    conversation = Conversation(vlm.model)
    filled = prefill(vlm.model, conversation, prompt, step=step, all_logits=True)
    last = np.array(filled.logits[0, -len(logits) :])
    np.testing.assert_allclose(last, logits, rtol=0, atol=TOLERANCE)
    sampler = Sampler(Options(), filled.logits.shape[-1], prompt.token_ids)
    tokens = decode(vlm.model, conversation.cache, filled.logits[:, -1], [sampler], len(greedy))
    assert [step[0].token_id for step in tokens] == list(greedy)
