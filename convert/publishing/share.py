"""A converted folder goes to the Hub with a card that says what it is, read from the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlx_qwenvl.errors import QwenVLError
from mlx_qwenvl.json_file import read_json
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.weights.bundle import MANIFEST, open_bundle
from mlx_qwenvl.weights.describe import Part, describe
from mlx_qwenvl.weights.files import INDEX_FILE

from ..reporting.report import REPORT_FILE
from .card import CARD_FILE, CardFacts, VariantFacts, model_card
from .upload import upload


def share(folder: Path, repository: str, *, private: bool, progress: bool) -> str:
    """Write the model card into a converted folder and upload both.

    Args:
        folder: What the converter wrote.
        repository: `owner/model`.
        private: Only the owner shall see it.
        progress: Show bars on stderr.

    Returns:
        The repository's address.

    Raises:
        QwenVLError: The folder is none of ours, there is no token, or the Hub refuses.
    """
    card = model_card(card_facts(folder, repository))
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return upload(folder, repository, private=private, progress=progress)


def card_facts(folder: Path, repository: str | None = None) -> CardFacts:
    """What a card says, from the manifest, the weights' headers and the report if there is one.

    Raises:
        QwenVLError: The folder is none of ours, or damaged.
    """
    if not (folder / MANIFEST).exists():
        raise QwenVLError(f"{folder} was not written by this converter")
    manifest = read_json(folder / MANIFEST)
    measured, measured_on = _measured(folder)
    config = Config.from_folder(folder)
    variants = []
    tower = ""
    for name in manifest["variants"]:
        with open_bundle(folder, name) as bundle:
            description = describe(config, bundle.tensors)
        quality = measured.get(name, {})
        variants.append(
            VariantFacts(
                name=name,
                recipe=name,
                nbytes=description.stored_bytes,
                bits_per_weight=description.bits_per_weight,
                mean_kl=quality.get("mean_kl"),
                top1=quality.get("top1"),
            )
        )
        tower = tower or _bits(description.parts[0])
    return CardFacts(
        source=manifest["source"],
        model_type=read_json(folder / "config.json")["model_type"],
        revision=manifest["revision"],
        variants=tuple(variants),
        default=manifest["default"],
        checksums=_checksums(folder),
        converter_version=manifest["converter"].rpartition(" ")[2],
        vision_bits=tower,
        calibrated=manifest["calibrated"],
        licence=None,
        measured_on=measured_on,
        repository=repository,
    )


def _measured(folder: Path) -> tuple[dict[str, Any], str | None]:
    """Quality of the variants by name, and what it was measured on."""
    file = folder / REPORT_FILE
    if not file.exists():
        return {}, None
    report = read_json(file)
    quality = {variant["name"]: variant["quality"] for variant in report["variants"]}
    measurement = report["measurement"]
    return quality, (
        f"{measurement['positions']} answer tokens to {measurement['prompts']} built-in pictures"
    )


def _checksums(folder: Path) -> dict[str, str]:
    """Digests of all weight files by their names in the folder."""
    return {
        (index.parent / name).relative_to(folder).as_posix(): digest
        for index in sorted(folder.rglob(INDEX_FILE))
        for name, digest in read_json(index)["metadata"]["sha256"].items()
    }


def _bits(part: Part) -> str:
    """Bits of a part in words: 16 where it is dense, else those of its formats."""
    return ", ".join(part.formats) if part.formats else f"{part.bits_per_weight:.0f}"
