"""Counts and times of a call's answers, under the names that clients know."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mlx_qwenvl.engine.reply import Timings, TokenLogprob, Usage
from mlx_qwenvl.inputs.tokenizer import Tokenizer

from .ticket import Heard, Ticket


@dataclass
class Tally:
    """What was heard of a call so far.

    Attributes:
        completion_tokens: Of all answers.
        usages: Of the finished answers.
        timings: Of the finished answers.
    """

    completion_tokens: int = 0
    usages: list[Usage] = field(default_factory=list)
    timings: list[Timings] = field(default_factory=list)

    def add(self, heard: Heard) -> None:
        """Count a piece."""
        self.completion_tokens += len(heard.chunk.token_ids)
        if heard.chunk.usage is not None:
            self.usages.append(heard.chunk.usage)
        if heard.chunk.timings is not None:
            self.timings.append(heard.chunk.timings)

    def usage(self) -> dict[str, Any]:
        """OpenAI's counts of the finished answers, and mistral.rs's rates beside them."""
        return usage_of([self])

    def usage_so_far(self, ticket: Ticket) -> dict[str, Any]:
        """OpenAI's counts while answers are under way."""
        prompt = ticket.progress[1] if ticket.progress else 0
        if self.usages:
            prompt = self.usages[0].prompt_tokens
        return counts(prompt, self.completion_tokens)

    def llama_timings(self) -> dict[str, Any]:
        """Counts and times of the finished answers, as llama.cpp names them."""
        prompt_s, completion_s = self._times()
        cached = self.usages[0].cached_tokens
        computed = self.usages[0].prompt_tokens - cached
        completion = sum(usage.completion_tokens for usage in self.usages)
        return {
            "cache_n": cached,
            "prompt_n": computed,
            "prompt_ms": prompt_s * 1e3,
            "prompt_per_token_ms": _ratio(prompt_s * 1e3, computed),
            "prompt_per_second": _ratio(computed, prompt_s),
            "predicted_n": completion,
            "predicted_ms": completion_s * 1e3,
            "predicted_per_token_ms": _ratio(completion_s * 1e3, completion),
            "predicted_per_second": _ratio(completion, completion_s),
        }

    def _times(self) -> tuple[float, float]:
        """Seconds for the prompt, its pictures included, and for the longest of the answers."""
        first = self.timings[0]
        return first.vision_s + first.prefill_s, max(each.decode_s for each in self.timings)


def usage_of(tallies: list[Tally]) -> dict[str, Any]:
    """Counts and rates of the finished calls of one request."""
    firsts = [tally.usages[0] for tally in tallies]
    prompt = sum(usage.prompt_tokens for usage in firsts)
    usages = [usage for tally in tallies for usage in tally.usages]
    completion = sum(usage.completion_tokens for usage in usages)
    times = [tally._times() for tally in tallies]
    prompt_s = sum(prompt_s for prompt_s, _ in times)
    completion_s = max(completion_s for _, completion_s in times)
    return {
        **counts(prompt, completion),
        "prompt_tokens_details": {
            "cached_tokens": sum(usage.cached_tokens for usage in firsts),
            "image_tokens": sum(usage.image_tokens for usage in firsts),
            "video_tokens": sum(usage.video_tokens for usage in firsts),
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": sum(usage.thinking_tokens for usage in usages),
            "audio_tokens": 0,
        },
        "avg_tok_per_sec": _ratio(prompt + completion, prompt_s + completion_s),
        "avg_prompt_tok_per_sec": _ratio(prompt, prompt_s),
        "avg_compl_tok_per_sec": _ratio(completion, completion_s),
        "total_time_sec": prompt_s + completion_s,
        "total_prompt_time_sec": prompt_s,
        "total_completion_time_sec": completion_s,
    }


def counts(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """OpenAI's three counts."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def chat_logprobs(entries: tuple[TokenLogprob, ...], tokenizer: Tokenizer) -> dict[str, Any]:
    """Log-probabilities in the form of OpenAI's chat completions."""
    content = [
        {
            **_token(entry.token_id, entry.logprob, tokenizer),
            "top_logprobs": [_token(index, logprob, tokenizer) for index, logprob in entry.top],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def _token(index: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    data = tokenizer.token_bytes(index)
    # JSON has no minus infinity; OpenAI writes this for tokens without a chance.
    return {
        "token": data.decode("utf-8", "replace"),
        "logprob": max(logprob, -9999.0),
        "bytes": list(data),
    }


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else 0.0
