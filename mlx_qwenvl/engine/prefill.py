"""From a prompt to the logits of its first answer token, slice by slice.

Only what the conversation does not hold yet is computed, in slices that bound memory and, where
others wait, time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.feature_store import FeatureStore
from mlx_qwenvl.engine.looking import look
from mlx_qwenvl.engine.options import PREFILL_STEP
from mlx_qwenvl.engine.slices import Slices, UnderWay
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.inputs.video import Seen, View
from mlx_qwenvl.models.model import Model
from mlx_qwenvl.models.rope import Slot


@dataclass(frozen=True)
class Prefilled:
    """What prefill leaves behind.

    Attributes:
        logits: [1, L', V]: of the last token, or of every computed one where asked for.
        cached_tokens: Prompt tokens that were in the conversation already.
        vision_s: Seconds in the vision tower.
        text_s: Seconds in the decoder, until `ready`.
        ready: When the last slice was under way, in `time.perf_counter` seconds.
    """

    logits: mx.array
    cached_tokens: int
    vision_s: float
    text_s: float
    ready: float


class Filling:
    """A prompt while it is computed.

    Args:
        model: The model.
        conversation: Holds the conversation so far, and the whole prompt afterwards.
        prompt: The whole conversation.
        step: Tokens computed at once at most.
        slices: Say how much is computed at once.
        store: Features of pictures seen before, which receives the new ones; None where all are
            to be computed.
        on_prefill: Called with tokens done and tokens in all, after every slice of tokens.
        all_logits: Give the logits of every computed token instead of the last one's.

    Attributes:
        done: Prompt tokens that are computed or under way.
    """

    def __init__(
        self,
        model: Model,
        conversation: Conversation,
        prompt: Prompt,
        *,
        step: int,
        slices: Slices,
        store: FeatureStore | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
        all_logits: bool = False,
    ) -> None:
        self._model, self._conversation, self._prompt = model, conversation, prompt
        self._step, self._slices = step, slices
        self._store = store or FeatureStore(0)
        self._on_prefill = on_prefill
        self._all_logits = all_logits
        self._cached = conversation.begin(prompt)
        self._steps = self._run()
        self._vision_s = self._text_s = 0.0
        self._is_looking = True
        self.done = self._cached
        positions, rope_delta = model.prompt_positions(
            prompt.token_ids.size,
            [
                Slot(start, seen.grid_thw, slot.image.seconds_per_grid)
                for slot in prompt.slots
                for start, seen in slot.runs
            ],
        )
        conversation.positions.expect(positions, rope_delta, start=0)

    def advance(self) -> Prefilled | None:
        """Begin the next slice, and give what is left behind once it is the last."""
        begin = time.perf_counter()
        logits = next(self._steps)
        spent = time.perf_counter() - begin
        if self._is_looking:
            self._vision_s += spent
        else:
            self._text_s += spent
        if logits is None:
            return None
        self.close()
        return Prefilled(logits, self._cached, self._vision_s, self._text_s, begin + spent)

    def close(self) -> None:
        """Let go of what was made on the way."""
        self._steps.close()

    def _run(self) -> Generator[mx.array | None, None, None]:
        """Slices as they are under way; the logits come with the last."""
        model, token_ids, cached = self._model, self._prompt.token_ids, self._cached
        placed = [(start, view) for slot in self._prompt.slots for start, view in slot.views]
        waiting = [(start, view) for start, view in placed if start + view.n_tokens > cached]
        features = yield from self._features(waiting)
        self._is_looking = False
        embeddings = model.embed(mx.array(token_ids[cached:]), features)
        outputs: list[mx.array] = []
        before: UnderWay | None = None
        size = 0  # of the slice before
        total, cleared = token_ids.size, cached
        while self.done < total:
            if before is not None and self._slices.shared:
                self._slices.note_tokens(size, self._slices.wait(before))
                before = None
            begin = self.done
            end = min(begin + self._slices.tokens(self._step), total)
            slice_ = embeddings[:, begin - cached : end - cached]
            shown = _within(features, begin - cached, end - cached)
            hidden = model.read(slice_, self._conversation.cache, shown)
            if self._all_logits:
                outputs.append(model.logits(hidden))
            elif end == total:
                outputs.append(model.logits(hidden[:, -1:]))
            # All layers' keys and values are on the way to these.
            handed = self._slices.hand_over([hidden[:, -1:], *outputs[-1:]])
            if before is not None:
                # The device goes on with this slice while the host waits for the one before.
                self._slices.wait(before)
            before, size, self.done = handed, end - begin, end
            if end - cleared >= PREFILL_STEP:
                mx.clear_cache()
                cleared = end
            if self._on_prefill is not None:
                self._on_prefill(end, total)
            if end < total:
                yield None
        yield outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=1)

    def _features(
        self, waiting: Sequence[tuple[int, View]]
    ) -> Generator[None, None, list[tuple[int, mx.array]]]:
        """Features for the slots behind the cached tokens, placed relative to the first.

        Args:
            waiting: Pictures and temporal patches, each with the index of its first slot.
        """
        known = {view.digest: self._store.get(view.digest) for _, view in waiting}
        encoded = {digest: features for digest, features in known.items() if features is not None}
        missing = [view for _, view in waiting if view.digest not in encoded]
        new = yield from look(self._model, missing, self._slices)
        for digest, features in new.items():
            self._store.put(digest, features)
        encoded |= new
        placed = []
        for begin, view in waiting:
            hidden = max(0, self._cached - begin)  # slots of this picture that are cached
            placed.append((begin + hidden - self._cached, encoded[view.digest][hidden:]))
        return placed


def prefill(
    model: Model,
    conversation: Conversation,
    prompt: Prompt,
    *,
    step: int,
    store: FeatureStore | None = None,
    on_prefill: Callable[[int, int], None] | None = None,
    all_logits: bool = False,
) -> Prefilled:
    """Compute a prompt where nobody waits; the arguments are those of `Filling`."""
    filling = Filling(
        model,
        conversation,
        prompt,
        step=step,
        slices=Slices(),
        store=store,
        on_prefill=on_prefill,
        all_logits=all_logits,
    )
    filled = filling.advance()
    while filled is None:
        filled = filling.advance()
    return filled


def encode_images(model: Model, images: Sequence[Seen]) -> dict[bytes, mx.array]:
    """Features [n, D] of pictures and videos by their digests, where nobody waits."""
    looking = look(model, [view for image in images for view in image.views], Slices())
    while True:
        try:
            next(looking)
        except StopIteration as end:
            features: dict[bytes, mx.array] = end.value
            break
    joined = {}
    for image in images:
        parts = [features[view.digest] for view in image.views]
        joined[image.digest] = parts[0] if len(parts) == 1 else mx.concatenate(parts)
    return joined


def _within(
    features: Sequence[tuple[int, mx.array]], begin: int, end: int
) -> list[tuple[int, mx.array]]:
    """The features of the tokens from `begin` to `end`, placed relative to the first."""
    parts = []
    for start, rows in features:
        first, last = max(start, begin), min(start + rows.shape[0], end)
        if first < last:
            parts.append((first - begin, rows[first - start : last - start]))
    return parts
