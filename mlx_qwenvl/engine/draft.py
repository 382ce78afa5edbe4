"""Proposals from a draft model: a smaller Qwen2-VL of the same vocabulary that sees the same.

It has stores and a cache of its own. It reads the prompt, pictures included, when the first token
of the answer is there, so that this one does not wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.feature_store import FeatureStore
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.prefill import prefill
from mlx_qwenvl.engine.prefix_store import PrefixStore
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.models.model import Model

FIRST_PROPOSAL = 2  # tokens proposed at once until it is known how many are right


@dataclass(frozen=True)
class DraftModel:
    """A draft model with what it keeps of earlier questions.

    Attributes:
        model: The network.
        prefixes: Keys and values of earlier prompts and answers.
        features: Vision features of their pictures.
    """

    model: Model
    prefixes: PrefixStore
    features: FeatureStore


class Draft:
    """The draft's view of one answer.

    Args:
        draft: The draft model.
        prompt: The whole conversation.
        vocabulary: V of the model that answers; nothing beyond it is proposed.
        options: The call's.
        least: Tokens of the shortest proposal that can pay.
    """

    def __init__(
        self, draft: DraftModel, prompt: Prompt, vocabulary: int, options: Options, least: int
    ) -> None:
        self._draft = draft
        self._prompt = prompt
        self._vocabulary = vocabulary
        self._options = options
        self._conversation: Conversation | None = None  # None before the prompt was read
        self._answer: list[int] = []
        self._fed: list[int] = []  # answer tokens in the cache
        self._least = least
        self._length = max(least, FIRST_PROPOSAL)
        self.confidence = 0  # tokens since the last proposal

    def prepare(self) -> None:
        """Read the prompt."""
        if self._prompt.token_ids.size >= self._draft.model.config.text.max_position_embeddings:
            return
        options = self._options
        kv = options.kv.for_heads(self._draft.model.config.text.head_dim)
        conversation = self._draft.prefixes.take(self._prompt, kv)
        prefill(
            self._draft.model,
            conversation,
            self._prompt,
            step=options.prefill_step,
            store=self._draft.features,
        )
        mx.eval([layer.state for layer in conversation.cache])
        self._conversation = conversation

    def append(self, token: int) -> None:
        """Note the answer's next token."""
        self._answer.append(token)
        self.confidence += 1

    def propose(self, most: int) -> list[int]:
        """At most `most` tokens; as many as lately turned out right, and one more."""
        text, most = self._draft.model.config.text, min(most, self._length)
        longest = self._prompt.token_ids.size + len(self._answer) + most
        is_strange = any(token >= text.vocab_size for token in self._answer)
        if self._conversation is None or is_strange or longest > text.max_position_embeddings:
            return []
        self.confidence = 0
        fresh = self._answer[self._keep_common(self._conversation, self._answer) :]
        token = self._likeliest(self._conversation, mx.array(fresh))
        proposed = [token]
        for _ in range(most - 1):
            token = self._likeliest(self._conversation, token[None])
            proposed.append(token)
        ids: list[int] = np.array(mx.stack(proposed)).tolist()
        self._fed = [*self._answer, *ids[:-1]]
        known = next((i for i, index in enumerate(ids) if index >= self._vocabulary), len(ids))
        return ids[:known]

    def learn(self, proposed: int, accepted: int) -> None:
        """Hear how many of the last proposal's tokens were right."""
        length = max(self._length, proposed + 1) if accepted == proposed else accepted + 1
        self._length = max(self._least, length)

    def finish(self, answer: Sequence[int]) -> None:
        """Keep the conversation with what was really said."""
        if self._conversation is not None:
            self._keep_common(self._conversation, answer)
            self._conversation.extend(answer)
            self._draft.prefixes.put(self._conversation)

    def _keep_common(self, conversation: Conversation, answer: Sequence[int]) -> int:
        """Forget what was fed and not said; give how many answer tokens are in the cache.

        The answer's last token is never among them: proposing starts from its logits.
        """
        size = min(len(self._fed), max(0, len(answer) - 1))
        same = next((i for i in range(size) if self._fed[i] != answer[i]), size)
        for layer in conversation.cache:
            layer.trim(max(0, layer.offset - self._prompt.token_ids.size - same))
        self._fed = self._fed[:same]
        return same

    def _likeliest(self, conversation: Conversation, token_ids: mx.array) -> mx.array:
        """The likeliest token, a scalar, behind token ids [L], which are fed."""
        return mx.argmax(self._draft.model(token_ids[None], conversation.cache)[0, -1])
