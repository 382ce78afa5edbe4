"""The model card of a converted folder: what it was made of, how, and what that cost.

A card holds nothing that was not measured or counted, and no path of the machine that made it: a
source that is a folder is named by its last part alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlx_qwenvl.sizes import in_bytes

from ..source import REPOSITORY, source_repository

CARD_FILE = "README.md"
DENSE = "none"  # the recipe that quantizes nothing


@dataclass(frozen=True)
class VariantFacts:
    """One quantization of the model.

    Attributes:
        name: What `--variant` calls it.
        recipe: What it was quantized by; "none" is full precision.
        nbytes: Bytes of the weights that it reads, shared ones included.
        bits_per_weight: Mean over all weights, scales included.
        mean_kl: Mean divergence from the source in nats per token, or None where not measured.
        top1: Share of tokens that both rank first, 0 to 1, or None where not measured.
    """

    name: str
    recipe: str
    nbytes: int
    bits_per_weight: float
    mean_kl: float | None = None
    top1: float | None = None


@dataclass(frozen=True)
class CardFacts:
    """All that a card says.

    Attributes:
        source: What was converted: a Hub name, or a folder.
        model_type: What its `config.json` calls it.
        revision: The source's commit, where it is known.
        variants: The quantizations in the folder, at least one.
        default: Name of the one that opens where none is named.
        checksums: SHA-256 of the files, in hexadecimal, by their names in the folder.
        converter_version: Version of mlx-qwenvl.
        vision_bits: Bits of the vision tower's weights.
        calibrated: The set that a learned quantization looked at, or None for round-to-nearest.
        licence: Identifier of the source's licence, such as "apache-2.0", where it is known.
        measured_on: The set on which the loss was measured, where it was.
        repository: Where the folder goes on the Hub, where that is known.
    """

    source: str
    model_type: str
    revision: str | None
    variants: tuple[VariantFacts, ...]
    default: str
    checksums: Mapping[str, str]
    converter_version: str
    vision_bits: str
    calibrated: str | None
    licence: str | None
    measured_on: str | None = None
    repository: str | None = None


def model_card(facts: CardFacts) -> str:
    """Write the card.

    Returns:
        Markdown behind a YAML header, as the Hub reads it.
    """
    repository = _hub_name(facts.source)
    name = repository or Path(facts.source).expanduser().resolve().name
    recipes = ", ".join(dict.fromkeys(variant.recipe for variant in facts.variants))
    parts = [
        _front_matter(facts, repository),
        f"# {_plain(name.rpartition('/')[2])} for MLX: {recipes}",
        _origin(facts, name, is_on_hub=repository is not None),
        _variants(facts),
        _loss(facts),
        _use(facts),
        _sums(facts.checksums),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(facts: CardFacts, base_model: str | None) -> str:
    lines = ["---", "library_name: mlx", "pipeline_tag: image-text-to-text"]
    if facts.licence is not None:
        lines.append(f"license: {_quoted(facts.licence)}")
    if base_model is not None:
        lines.append(f"base_model: {_quoted(base_model)}")
        if _is_quantized(facts):
            lines.append("base_model_relation: quantized")
    return "\n".join([*lines, "tags:", "- mlx", f"- {facts.model_type}", "---"])


def _origin(facts: CardFacts, name: str, *, is_on_hub: bool) -> str:
    source = f"[{name}](https://huggingface.co/{name})" if is_on_hub else _code(name)
    revision = f", revision {_code(facts.revision)}" if facts.revision else ""
    tower = f"{facts.vision_bits} bits" if facts.vision_bits.isdigit() else facts.vision_bits
    origin = f"Made from {source}{revision}, by mlx-qwenvl {facts.converter_version}."
    if not _is_quantized(facts):
        return f"{origin} Nothing is quantized."
    rounding = (
        f"The rounding was learned on {_plain(facts.calibrated)}."
        if facts.calibrated is not None
        else "Weights are rounded to nearest."
    )
    return f"{origin} The recipe is the decoder's; the vision tower has {_plain(tower)}. {rounding}"


def _variants(facts: CardFacts) -> str:
    is_measured = _is_measured(facts)
    titles = ["variant", "recipe", "size", "bits per weight"]
    titles += ["mean KL", "top-1 agreement"] if is_measured else []
    rows = []
    for variant in facts.variants:
        is_default = len(facts.variants) > 1 and variant.name == facts.default
        row = [
            _code(variant.name) + (" (default)" if is_default else ""),
            _code(variant.recipe),
            in_bytes(variant.nbytes),
            f"{variant.bits_per_weight:.2f}",
        ]
        if is_measured:
            row.append("not measured" if variant.mean_kl is None else f"{variant.mean_kl:.4f}")
            row.append("not measured" if variant.top1 is None else f"{variant.top1:.1%}")
        rows.append(row)
    lines = [titles, ["---"] * 2 + ["---:"] * (len(titles) - 2), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _loss(facts: CardFacts) -> str:
    if not _is_measured(facts):
        return "The loss against the source was not measured."
    place = f" on {_plain(facts.measured_on)}" if facts.measured_on else ""
    return (
        f"The loss was measured against the source{place}. KL is the mean divergence of the next "
        "token's distribution, in nats; agreement is the share of tokens that both rank first."
    )


def _use(facts: CardFacts) -> str:
    place = facts.repository or "path/to/this/folder"
    others = [variant.name for variant in facts.variants if variant.name != facts.default]
    ask = f'--model {place} --image picture.png --prompt "What is this?"'
    lines = [
        "## Use",
        "",
        "```sh",
        f"python -m mlx_qwenvl.generate {ask}",
        *(f"python -m mlx_qwenvl.generate --variant {name} {ask}" for name in others[:1]),
        "```",
        "",
        "```python",
        "from mlx_qwenvl import load",
        "",
        f'vlm = load("{place}")',
        'print(vlm.generate("What is this?", images=["picture.png"]))',
        "```",
        "",
        "This is an ordinary MLX folder: mlx-vlm opens it as it is, mlx-lm its decoder."
        + (f" Both see the variant {_code(facts.default)}." if others else ""),
    ]
    return "\n".join(lines)


def _sums(checksums: Mapping[str, str]) -> str:
    if not checksums:
        return ""
    lines = [f"{digest}  {name}" for name, digest in sorted(checksums.items())]
    return "\n".join(["## SHA-256", "", "For `sha256sum -c`:", "", "```text", *lines, "```"])


def _is_quantized(facts: CardFacts) -> bool:
    return any(variant.recipe != DENSE for variant in facts.variants)


def _is_measured(facts: CardFacts) -> bool:
    return any(v.mean_kl is not None or v.top1 is not None for v in facts.variants)


def _hub_name(source: str) -> str | None:
    """The Hub name of what was converted; a folder goes before a repository of its name."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return source_repository(folder)
    return source if REPOSITORY.fullmatch(source) else None


def _quoted(text: str) -> str:
    """A YAML string that can be nothing else: `no` is a licence here and no truth value."""
    return json.dumps(text)


def _plain(text: str) -> str:
    """Text of others, which shall not become markup or break a line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Text of others in type that stands as written, also in a table."""
    return "`" + " ".join(text.split()).replace("`", "'").replace("|", "/") + "`"
