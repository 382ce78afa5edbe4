"""What `config.json` says of experts, beyond what it says of a dense Qwen3-VL."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from mlx_qwenvl.models.deepstack_config import DeepstackConfig, NormedTextConfig
from mlx_qwenvl.models.reader import Reader

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class ExpertsTextConfig(NormedTextConfig):
    """Shape of a decoder with experts.

    Attributes:
        num_experts: Experts of a layer.
        num_experts_per_tok: Those of them that a token is given.
        moe_intermediate_size: Width inside an expert.
        decoder_sparse_step: Every so many layers have experts.
        mlp_only_layers: Layers that have none all the same.
    """

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    decoder_sparse_step: int
    mlp_only_layers: tuple[int, ...]

    def has_experts(self, layer: int) -> bool:
        """Whether a layer has experts in the place of its MLP."""
        return (layer + 1) % self.decoder_sparse_step == 0 and layer not in self.mlp_only_layers

    @property
    def mlp_words(self) -> str:
        """What an MLP is, for people."""
        active, inner = self.num_experts_per_tok, self.moe_intermediate_size
        return f"{self.num_experts} experts of {inner}, {active} a token"

    @property
    def mlp_values(self) -> int:
        """Numbers that experts make of one token: what an MLP makes, what goes in and comes out."""
        made = 3 * self.moe_intermediate_size + 2 * self.hidden_size
        return max(super().mlp_values, self.num_experts_per_tok * made)

    @property
    def active_experts(self) -> Fraction:
        """The part of the experts that a token is computed with."""
        return Fraction(self.num_experts_per_tok, self.num_experts)

    @classmethod
    def read(cls, root: Reader, text: Reader) -> Self:
        """Read the decoder's keys."""
        # Transformers 5 saves the number under another name.
        saved = "num_local_experts" in text.raw
        return cls(
            **vars(NormedTextConfig.read(root, text)),
            num_experts=text.integer("num_local_experts" if saved else "num_experts"),
            num_experts_per_tok=text.integer("num_experts_per_tok"),
            moe_intermediate_size=text.integer("moe_intermediate_size"),
            decoder_sparse_step=text.integer("decoder_sparse_step"),
            mlp_only_layers=text.integers("mlp_only_layers"),
        )

    def claims(self) -> list[tuple[bool, str]]:
        """What has to hold for the decoder to work, each with its words."""
        fits = 0 < self.num_experts_per_tok <= self.num_experts
        return [
            *super().claims(),
            (fits, "num_experts_per_tok is at most num_experts"),
            (self.decoder_sparse_step > 0, "decoder_sparse_step is positive"),
        ]


@dataclass(frozen=True)
class ExpertsConfig(DeepstackConfig):
    """A whole Qwen3-VL with experts."""

    text_type = ExpertsTextConfig
    text: ExpertsTextConfig
