"""What a report is made of. The JSON has these names, and the page is drawn from the JSON.

Sizes are bytes, times seconds, divergences nats, shares 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .quality import Quality

REPORT_VERSION = 1  # of the JSON; it rises when a name changes its meaning


@dataclass(frozen=True)
class PartFacts:
    """A part of a model.

    Attributes:
        name: Such as "decoder".
        parameters: Weights of the dense module.
        nbytes: Bytes stored.
        bits_per_weight: Scales, biases and norms included.
        formats: Matrices by how they are stored.
    """

    name: str
    parameters: int
    nbytes: int
    bits_per_weight: float
    formats: Mapping[str, int]


@dataclass(frozen=True)
class SourceFacts:
    """What was converted.

    Attributes:
        name: A Hub name, or a folder's own name.
        revision: The commit, where it is known.
        nbytes: Bytes of the weights.
        parameters: Weights.
        bits_per_weight: Stored.
        parts: Its parts.
    """

    name: str
    revision: str | None
    nbytes: int
    parameters: int
    bits_per_weight: float
    parts: tuple[PartFacts, ...]


@dataclass(frozen=True)
class ModuleFacts:
    """What became of one matrix.

    Attributes:
        path: The module.
        format: Such as "4bit", or the dtype where it is dense.
        error: ||W - Q(W)|| / ||W||; None where it is no number.
        dense_because: Why it is not quantized, or None where it is.
    """

    path: str
    format: str
    error: float | None
    dense_because: str | None


@dataclass(frozen=True)
class VariantFacts:
    """One of the quantizations that were made.

    Attributes:
        name: What `--variant` calls it.
        asked_for: The recipe as it was written.
        is_default: Whether it opens where none is named.
        nbytes: Bytes of the weights that it reads, shared ones included.
        bits_per_weight: Mean over all weights.
        parts: Its parts.
        modules: Every matrix, in the order of the model.
        quality: How it answers, held against the source.
    """

    name: str
    asked_for: str
    is_default: bool
    nbytes: int
    bits_per_weight: float
    parts: tuple[PartFacts, ...]
    modules: tuple[ModuleFacts, ...]
    quality: Quality


@dataclass(frozen=True)
class Measurement:
    """How the answers were compared.

    Attributes:
        seed: Of the built-in pictures.
        prompts: How many.
        positions: Distributions compared.
        max_tokens: Most tokens of an answer.
        device: "cpu" or "gpu".
        computed_in: The dtype of the source's activations.
        seconds: Of all measuring, the errors of the matrices included.
    """

    seed: int
    prompts: int
    positions: int
    max_tokens: int
    device: str
    computed_in: str
    seconds: float


@dataclass(frozen=True)
class SideBySide:
    """Answers to one prompt.

    Attributes:
        question: What was asked.
        pictures: As `data:` URLs, made small.
        source: The source's answer.
        variants: The variants' answers by their names.
    """

    question: str
    pictures: tuple[str, ...]
    source: str
    variants: Mapping[str, str]


@dataclass(frozen=True)
class Report:
    """All that is told about a conversion.

    Attributes:
        report_version: See `REPORT_VERSION`.
        converter: Name and version of the program.
        source: What was converted.
        wishes: The options, by the names of `Wishes`.
        output: Name of the folder or file.
        output_bytes: Bytes of all its weights; what variants share is counted once.
        seconds: That converting took.
        peak_bytes: Most memory that the process held while converting.
        notes: What the converter had to say.
        variants: The quantizations; the first is the default.
        measurement: How they were compared.
        answers: Some answers side by side.
    """

    report_version: int
    converter: str
    source: SourceFacts
    wishes: Mapping[str, Any]
    output: str
    output_bytes: int
    seconds: float
    peak_bytes: int
    notes: tuple[str, ...]
    variants: tuple[VariantFacts, ...]
    measurement: Measurement
    answers: tuple[SideBySide, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it; what is no number is None."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def _plain(value: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
