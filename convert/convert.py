"""A checkpoint becomes an MLX folder, or a single file, a block of rows in memory at a time.

check -> plan each variant -> learn, where asked for -> lay out -> write -> rename

Nothing is written before everything that can be checked has been, and the output appears whole or
not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import mlx.core as mx

from mlx_qwenvl.errors import CheckpointError, OptionError
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.weights.bundle import FORMAT_VERSION, Bundle, open_bundle
from mlx_qwenvl.weights.files import FLOATS, StoredTensor, by_canonical_name, read_header
from mlx_qwenvl.weights.load import check_tensors
from mlx_qwenvl.weights.plan import make_plan, vision_recipe
from mlx_qwenvl.weights.recipes import read_recipe
from mlx_qwenvl.weights.topology import Topology

from .draft import LEARNED, drafting, publish
from .layout import Variant, make_pieces
from .output import Record, check_output, write_output
from .progress import Progress
from .source import source_name, source_revision
from .tensors import Rules

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
CALIBRATION_SEED = 0  # of the built-in pictures; reports take others
CALIBRATION_PROMPTS = 128  # pictures with questions that the rounding is learned from


@dataclass(frozen=True)
class Wishes:
    """What is wanted.

    Attributes:
        recipes: One for each variant; the first is the default.
        vision_bits: Of the vision tower: 16 leaves it dense.
        group_size: Of affine formats whose recipe states none.
        topology: A file with rules that go before the recipes.
        dtype: "float32", "float16" or "bfloat16" for what stays dense and for scales, or None to
            keep the source's.
        calibrate: "builtin" or a folder of pictures to learn the rounding with, or None.
        allow_nonfinite: Go on where weights are NaN or infinite.
    """

    recipes: tuple[str, ...] = ("none",)
    vision_bits: int | None = None
    group_size: int | None = None
    topology: str | None = None
    dtype: str | None = None
    calibrate: str | None = None
    allow_nonfinite: bool = False


@dataclass(frozen=True)
class Outcome:
    """What was done.

    Attributes:
        output: The folder or file.
        source_bytes: Bytes of the source's weights.
        output_bytes: Bytes of all that was written.
        variants: Bytes of each variant's weights.
        ungrouped: Modules that were to be quantized and stay dense, each with the reason.
        notes: Things that should be said.
    """

    output: Path
    source_bytes: int
    output_bytes: int
    variants: dict[str, int]
    ungrouped: dict[str, str]
    notes: tuple[str, ...]


def convert(
    source: Path,
    output: Path,
    wishes: Wishes | str | None = None,
    *,
    name: str | None = None,
    single_file: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Write a copy of a model for MLX.

    Args:
        source: A folder with full-precision weights.
        output: A folder that does not exist yet, or a file.
        wishes: What to make of it; a recipe's name alone will do, and nothing keeps all as it is.
        name: What the source is called, for the record; by default its path.
        single_file: Write one file with everything in it.
        overwrite: Replace an output that is there.
        resume: Go on where an earlier conversion to this output was broken off.
        progress: Who is told how far it is.

    Raises:
        CheckpointError: The source is no such folder, is quantized, or holds NaN.
        OptionError: An unknown recipe, dtype or topology.
        QwenVLError: The output exists, lies inside the source, or does not fit the disk.
    """
    if not isinstance(wishes, Wishes):
        wishes = Wishes() if wishes is None else Wishes(recipes=(wishes,))
    progress = progress or Progress()
    output = output.expanduser().absolute()
    recipes = [read_recipe(recipe, wishes.group_size) for recipe in wishes.recipes]
    names = [recipe.name for recipe in recipes]
    if len(set(names)) != len(names):
        raise OptionError(f"two of the recipes are the same: {', '.join(names)}")
    vision = vision_recipe(wishes.vision_bits, wishes.group_size)
    rules = Rules(safetensors_dtype(wishes.dtype), wishes.allow_nonfinite)
    topology = None
    if wishes.topology is not None:
        topology = Topology.from_file(Path(wishes.topology), wishes.group_size)
    check_output(source, output, is_file=single_file, overwrite=overwrite)
    with open_bundle(source) as bundle:
        config = Config.from_folder(bundle.folder)
        tensors = check_tensors(bundle.tensors, config)
        if any(stored.endswith(".scales") for stored in tensors):
            raise CheckpointError(
                f"{source} is quantized already; convert the original, or --dequantize it first"
            )
        check_floats(tensors.values())
        plans = [make_plan(config, recipe, vision=vision, topology=topology) for recipe in recipes]
        variants = [Variant(n, plan, {}) for n, plan in zip(names, plans, strict=True)]
        order = {
            "source": fingerprint(bundle),
            # What a topology says is in the plans; weights that were written were finite.
            "wishes": asdict(replace(wishes, topology=None, allow_nonfinite=False)),
            "plans": {v.name: {p: str(f) for p, f in v.plan.formats.items()} for v in variants},
            "single_file": single_file,
            "format": FORMAT_VERSION,
        }
        with drafting(output, order, resume=resume, overwrite=overwrite) as draft, progress:
            if wishes.calibrate is not None:
                variants = _learned(bundle, config, variants, wishes, draft, progress)

            def is_torch(tensor: StoredTensor) -> bool:
                return len(tensor.shape) == 5 and tensor.shape[1] == config.vision.in_channels

            pieces = make_pieces(tensors, variants, rules, is_torch=is_torch)
            record = Record(
                source=source_name(name or str(source), source),
                revision=source_revision(source),
                variants={v.name: v.plan.statement() for v in variants},
                dtype=wishes.dtype,
                # Outputs are passed on, so no path of this machine stays in them.
                calibrated=None if wishes.calibrate is None else Path(wishes.calibrate).name,
            )
            finished = write_output(
                draft, output, bundle.folder, pieces, record, single_file, progress
            )
            # It may have come into being meanwhile.
            check_output(source, output, is_file=single_file, overwrite=overwrite)
            publish(finished, output)
    return Outcome(
        output,
        sum(tensor.nbytes for tensor in tensors.values()),
        sum(piece.nbytes for piece in pieces),
        {v: sum(piece.nbytes for piece in pieces if v in piece.variants) for v in names},
        {path: why for plan in plans for path, why in plan.ungrouped.items()},
        tuple(dict.fromkeys(note for plan in plans for note in plan.notes)),
    )


def fingerprint(bundle: Bundle) -> list[list[str | int]]:
    """What tells whether a source is the same as before: its files, their sizes and times."""
    files = sorted({tensor.file for tensor in bundle.tensors.values()})
    stats = [(file, file.stat()) for file in files]
    return [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def check_floats(tensors: Iterable[StoredTensor]) -> None:
    """See that tensors are of a dtype that weights have.

    Raises:
        CheckpointError: One is not.
    """
    for tensor in tensors:
        if tensor.dtype not in FLOATS:
            raise CheckpointError(
                f"{tensor.key} in {tensor.file} has dtype {tensor.dtype}, expected one of "
                f"{', '.join(FLOATS)}"
            )


def safetensors_dtype(name: str | None) -> str | None:
    """What safetensors calls a dtype.

    Raises:
        OptionError: There is no such dtype.
    """
    if name is not None and name not in DTYPES:
        raise OptionError(f"unknown dtype {name!r}; expected one of {', '.join(DTYPES)}")
    return None if name is None else DTYPES[name]


def _learned(
    bundle: Bundle,
    config: Config,
    variants: Sequence[Variant],
    wishes: Wishes,
    draft: Path,
    progress: Progress,
) -> list[Variant]:
    """The variants with weights that were learned from pictures."""
    from .learning.calibration import calibration_prompts
    from .learning.learn import learn
    from .learning.texts import ANSWERS_FILE

    assert wishes.calibrate is not None, "asked for"
    prompts = calibration_prompts(wishes.calibrate, CALIBRATION_SEED, CALIBRATION_PROMPTS)
    learned: list[Variant] = []
    for variant in variants:
        folder = draft / LEARNED / variant.name
        folder.mkdir(parents=True, exist_ok=True)
        if learned and not (folder / ANSWERS_FILE).exists():  # all learn from the same answers
            shutil.copy(draft / LEARNED / learned[0].name / ANSWERS_FILE, folder)
        layers = config.text.num_hidden_layers
        progress.begin(f"learning {variant.name}", layers, is_bytes=False)
        dtype = None if wishes.dtype is None else getattr(mx, wishes.dtype)
        learn(
            *(bundle, config, variant.plan, prompts, folder),
            dtype=dtype,
            on_layer=lambda done, total: progress.advance(1),
        )
        files = sorted(folder.glob("*.safetensors"))
        tensors = by_canonical_name(t for file in files for t in read_header(file))
        learned.append(replace(variant, learned=tensors))
    return learned
