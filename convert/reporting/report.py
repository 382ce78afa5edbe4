"""What a conversion cost: counted, measured, and written as JSON and as a page.

The figures are those of `report.json`; the page is drawn from the same mapping and holds nothing
else. As in the model card, a source or a topology that is a path is named by its last part alone.
"""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import mlx.core as mx
from PIL import Image

from mlx_qwenvl import __version__
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.families import build
from mlx_qwenvl.vlm import load
from mlx_qwenvl.weights.bundle import Bundle, open_bundle
from mlx_qwenvl.weights.describe import FLOAT_NAMES, Part, describe
from mlx_qwenvl.weights.load import check_tensors, stored_formats

from ..convert import Outcome, Wishes
from ..pictures import builtin_pictures
from ..progress import Progress
from ..source import source_name, source_revision
from .facts import (
    REPORT_VERSION,
    Measurement,
    ModuleFacts,
    PartFacts,
    Report,
    SideBySide,
    SourceFacts,
    VariantFacts,
)
from .losses import module_losses
from .page import render_page
from .quality import MAX_TOKENS, Case, answer_texts, compare, computing_dtype, record

REPORT_FILE, PAGE_FILE = "report.json", "report.html"
SEED = 1  # of the pictures; learned roundings have seen those of seed 0
PROMPTS = 32
THUMBNAIL_SIDE = 168  # px, longer side of a picture in the report
DENSE_BITS = 16  # of a vision tower that is not quantized


def report(
    source: Path,
    outcome: Outcome,
    wishes: Wishes,
    *,
    name: str,
    seconds: float,
    peak_bytes: int,
    progress: Progress | None = None,
    prompts: int = PROMPTS,
) -> Report:
    """Measure what a conversion made.

    The models are loaded one after another, the source first. Its logits wait in a file without a
    name beside the output, where there was room for the output.

    Args:
        source: The folder that was converted.
        outcome: What `convert` gave back.
        wishes: What it was asked for.
        name: What the source is called.
        seconds: That converting took.
        peak_bytes: Most memory that it held.
        progress: Who is told how far it is.
        prompts: Pictures with questions to measure on.

    Raises:
        CheckpointError: Source or output cannot be opened.
        OSError: The logits find no room.
    """
    begin = time.perf_counter()
    progress = progress or Progress()
    output, names = outcome.output, list(outcome.variants)
    drawn = builtin_pictures(SEED, prompts)
    with progress:
        with open_bundle(source) as original:
            config = Config.from_folder(original.folder)
            about = _source_facts(name, source, original, config)
            modules, parts, bits = {}, {}, {}
            for variant in names:
                progress.begin(f"errors of {variant}", about.nbytes, is_bytes=True)
                with open_bundle(output, variant) as made:
                    description = describe(config, made.tensors)
                    losses = module_losses(original, made, config, progress.advance)
                    modules[variant] = _modules(made, config, losses, outcome, wishes)
                parts[variant] = tuple(_part(part) for part in description.parts)
                bits[variant] = description.bits_per_weight
        with TemporaryFile(prefix=".mlx-qwenvl-", dir=output.parent) as file:
            progress.begin("answers of the source", prompts, is_bytes=False)
            vlm = load(source.absolute())
            dtype = computing_dtype(vlm)
            recorded = record(vlm, drawn, file, lambda: progress.advance(1))
            del vlm
            mx.clear_cache()
            quality, answers = {}, {}
            for variant in names:
                progress.begin(f"answers of {variant}", prompts, is_bytes=False)
                vlm = load(output.absolute(), variant=variant)
                quality[variant] = compare(recorded, vlm, lambda: progress.advance(1))
                answers[variant] = answer_texts(recorded, vlm)
                del vlm
                mx.clear_cache()
    return Report(
        report_version=REPORT_VERSION,
        converter=f"mlx-qwenvl {__version__}",
        source=about,
        wishes=_wishes(wishes),
        output=output.name,
        output_bytes=outcome.output_bytes,
        seconds=seconds,
        peak_bytes=peak_bytes,
        notes=outcome.notes,
        variants=tuple(
            VariantFacts(
                name=variant,
                asked_for=recipe,
                is_default=variant == names[0],
                nbytes=outcome.variants[variant],
                bits_per_weight=bits[variant],
                parts=parts[variant],
                modules=modules[variant],
                quality=quality[variant],
            )
            for variant, recipe in zip(names, wishes.recipes, strict=True)
        ),
        measurement=Measurement(
            seed=SEED,
            prompts=prompts,
            positions=sum(case.positions for case in recorded.cases),
            max_tokens=MAX_TOKENS,
            device="cpu" if mx.default_device() == mx.cpu else "gpu",
            computed_in=dtype,
            seconds=time.perf_counter() - begin,
        ),
        answers=_side_by_side(recorded.cases, answers),
    )


def write_report(written: Report, output: Path) -> tuple[Path, Path]:
    """Write a report as JSON and as a page that needs nothing but itself.

    Args:
        written: What `report` gave.
        output: The folder, or the single file, that it is about.

    Returns:
        The JSON and the page: `report.json` and `report.html` in the folder, or beside the file
        with its name before theirs.
    """
    places = tuple(
        output / file if output.is_dir() else output.with_suffix(f".{file}")
        for file in (REPORT_FILE, PAGE_FILE)
    )
    facts = written.to_dict()
    texts = (json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False), render_page(facts))
    for place, text in zip(places, texts, strict=True):
        place.write_text(text + "\n", encoding="utf-8", errors="replace")
    return places[0], places[1]


def _source_facts(name: str, folder: Path, bundle: Bundle, config: Config) -> SourceFacts:
    description = describe(config, bundle.tensors)
    return SourceFacts(
        name=source_name(name, folder),
        revision=source_revision(folder),
        nbytes=description.stored_bytes,
        parameters=description.parameters,
        bits_per_weight=description.bits_per_weight,
        parts=tuple(_part(part) for part in description.parts),
    )


def _part(part: Part) -> PartFacts:
    return PartFacts(
        part.name, part.parameters, part.stored_bytes, part.bits_per_weight, part.formats
    )


def _modules(
    made: Bundle, config: Config, losses: Mapping[str, float], outcome: Outcome, wishes: Wishes
) -> tuple[ModuleFacts, ...]:
    tensors = check_tensors(made.tensors, config)
    formats = stored_formats(build(config), tensors)
    found = []
    for path, error in losses.items():
        form, why = formats.get(path), None
        dtype = tensors[f"{path}.weight"].dtype
        if form is None:
            why = outcome.ungrouped.get(path) or _why_dense(path, wishes)
        label = FLOAT_NAMES.get(dtype, dtype) if form is None else str(form)
        found.append(ModuleFacts(path, label, error, why))
    return tuple(found)


def _why_dense(path: str, wishes: Wishes) -> str:
    if path.startswith("visual.") and wishes.vision_bits in (None, DENSE_BITS):
        return "the vision tower is not quantized unless asked for"
    return "the recipe or the topology leaves it dense"


def _wishes(wishes: Wishes) -> dict[str, Any]:
    """The options without the paths of this machine."""
    given = asdict(wishes)
    for key in ("topology", "calibrate"):
        if given[key] is not None:
            given[key] = Path(given[key]).name or given[key]
    return given


def _side_by_side(
    cases: Sequence[Case], answers: Mapping[str, Sequence[str]]
) -> tuple[SideBySide, ...]:
    shown = min(len(texts) for texts in answers.values())
    return tuple(
        SideBySide(
            case.drawn.question,
            tuple(_thumbnail(image) for image in case.drawn.images),
            case.text,
            {variant: texts[index] for variant, texts in answers.items()},
        )
        for index, case in enumerate(cases[:shown])
    )


def _thumbnail(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    with BytesIO() as buffer:
        small.save(buffer, "JPEG", quality=85)
        return "data:image/jpeg;base64," + b64encode(buffer.getvalue()).decode()
