"""`Runner`: a loaded model that takes requests."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from mlx_qwenvl.compat.answering import Answering
from mlx_qwenvl.compat.requests import NO_AGENT, ChatCompletionRequest, CompletionRequest
from mlx_qwenvl.compat.responses import CompletionResponse
from mlx_qwenvl.compat.said import ignored, refused, settle
from mlx_qwenvl.compat.which import Which
from mlx_qwenvl.vlm import QwenVL, load

_TEMPLATE = "is not supported; the dialogue form is the model's own"
NO_TOKEN = "a token is HF_TOKEN's or that of `hf auth login`"
ONE_MEMORY = "Apple's memory is one; nothing is mapped to devices"
ONE_BY_ONE = "requests are answered as they come; the server computes many side by side"
_NO_PAGES = "keys and values are not kept in pages"


@dataclass(eq=False, repr=False)
class Runner:
    """Loads a model when it is made, as mistral.rs's does; see `docs/compat.md`.

    Attributes:
        which: The model.
        prefix_cache_n: 0 keeps nothing of earlier prompts; any other number keeps what the usual
            bound in bytes lets.
        which_draft: A smaller model that proposes tokens; the answers stay the same.
        in_situ_quant: Quantize while loading: "Q4K", "AFQ8", "4", "4bit", ...
        prompt_batchsize: Prompt tokens computed at once.
        seed: Makes drawing repeatable, answer after answer.

    Raises:
        OptionError: An option that cannot be followed; other errors are those of
            `mlx_qwenvl.load`.
    """

    which: Which.VisionPlain
    _: KW_ONLY
    max_seqs: int = ignored(ONE_BY_ONE, 16, harmless=(32,))
    no_kv_cache: bool = ignored("an answer never computes its own tokens anew", False)
    prefix_cache_n: int = 16
    token_source: str = ignored(NO_TOKEN, "cache")
    speculative_gamma: int = ignored("how many tokens are proposed is measured as it goes", 32)
    which_draft: Which.VisionPlain | None = None
    chat_template: str | None = refused(_TEMPLATE)
    jinja_explicit: str | None = refused(_TEMPLATE)
    num_device_layers: Sequence[str] | None = ignored(ONE_MEMORY)
    in_situ_quant: str | None = None
    anymoe_config: Any = refused(
        "is not supported; a model has the experts that it was trained with"
    )
    pa_gpu_mem: float | None = ignored(_NO_PAGES)
    pa_gpu_mem_usage: float | None = ignored(_NO_PAGES)
    pa_ctxt_len: int | None = ignored(_NO_PAGES)
    pa_blk_size: int | None = ignored(_NO_PAGES)
    pa_cache_type: Any = ignored(_NO_PAGES)
    no_paged_attn: bool = ignored(_NO_PAGES, False, harmless=(True,))
    paged_attn: bool = ignored(_NO_PAGES, False)
    memory_goal: str | float | None = ignored("what would not fit into memory is refused")
    prompt_batchsize: int | None = None
    seed: int | None = None
    mtp_model: str | None = ignored("use which_draft")
    mtp_n_predict: int | None = ignored("use which_draft")
    enable_search: bool = refused(NO_AGENT, False)
    search_embedding_model: str | None = ignored("it belongs to enable_search")
    search_callback: Any = ignored("it belongs to enable_search")
    tool_callbacks: Any = refused(NO_AGENT)
    mcp_client_config: Any = refused(NO_AGENT)
    code_execution_config: Any = refused(NO_AGENT)
    shell_config: Any = refused(NO_AGENT)

    def __post_init__(self) -> None:
        """Load the model."""
        settle(self)
        settle(self.which)
        vlm = load(
            self.which.model_id,
            dtype=self.which.dtype.value,
            quantize=self.in_situ_quant,
            topology=self.which.topology,
            variant=self.which.variant,
            prefix_bytes=0 if self.prefix_cache_n == 0 else None,
            feature_bytes=self.which.encoder_cache_memory_bytes,
            draft=None if self.which_draft is None else self.which_draft.model_id,
            progress=sys.stderr is not None and sys.stderr.isatty(),
        )
        self.answering = Answering(vlm, self.seed, self.prompt_batchsize, self.which.max_pixels)

    @property
    def vlm(self) -> QwenVL:
        """The model with its own API, to go on with."""
        return self.answering.vlm

    def send_chat_completion_request(self, request: ChatCompletionRequest) -> Any:
        """Answer a conversation.

        Returns:
            A `ChatCompletionResponse`; of a request with `stream=True` an iterator of
            `ChatCompletionChunkResponse`. Programs know which they asked for, type checkers do not.

        Raises:
            QwenVLError: As `QwenVL.generate` raises.
        """
        return self.answering.stream(request) if request.stream else self.answering.chat(request)

    def send_completion_request(self, request: CompletionRequest) -> CompletionResponse:
        """Go on with a text.

        Raises:
            QwenVLError: As `QwenVL.generate` raises.
        """
        return self.answering.complete(request)

    def tokenize_text(
        self, text: str, add_special_tokens: bool, enable_thinking: bool | None = None
    ) -> list[int]:
        """Token ids of a text in which special tokens count.

        Args:
            text: The text.
            add_special_tokens: Makes no difference: this family adds none.
            enable_thinking: Makes no difference, as in mistral.rs.
        """
        return self.vlm.tokenizer.encode_trusted(text)

    def detokenize_text(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
        """Text of token ids.

        Args:
            tokens: The ids.
            skip_special_tokens: Leave special tokens out.
        """
        special = set(self.vlm.tokenizer.special_ids.values()) if skip_special_tokens else set()
        return self.vlm.tokenizer.decode([token for token in tokens if token not in special])

    def max_sequence_length(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.vlm.config.text.max_position_embeddings
