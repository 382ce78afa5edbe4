"""The way back: an MLX folder becomes what Transformers loads, dense and in the Hub's layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_qwenvl.errors import CheckpointError
from mlx_qwenvl.json_file import read_json
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.families import build
from mlx_qwenvl.weights.bundle import FORMAT_VERSION, open_bundle
from mlx_qwenvl.weights.files import FLOATS, StoredTensor
from mlx_qwenvl.weights.load import check_tensors, stored_formats
from mlx_qwenvl.weights.names import beside, to_nested
from mlx_qwenvl.weights.plan import PATCH_EMBED
from mlx_qwenvl.weights.recipes import Format

from .convert import DTYPES, Outcome, check_floats, fingerprint, safetensors_dtype
from .draft import drafting, publish
from .layout import Piece, TensorJob
from .output import Record, check_output, write_output
from .progress import Progress
from .settings import DTYPE_KEYS
from .source import source_name, source_revision
from .tensors import Beside, Copy, Dequantize, Rules

MLX_TO_TORCH = (0, 4, 1, 2, 3)  # a convolution's weights [out, t, h, w, in] with channels second
DENSE = "none"  # name of the only variant


def dequantize(
    source: Path,
    output: Path,
    *,
    variant: str | None = None,
    dtype: str | None = None,
    allow_nonfinite: bool = False,
    name: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Write a dense copy of a quantized model with the names and shapes of the Hub's checkpoints.

    Args:
        source: A quantized folder or single file.
        output: A folder that does not exist yet.
        variant: Which of several quantizations.
        dtype: "float32", "float16" or "bfloat16"; by default that of the scales, or where these
            are no floats the one that `config.json` states.
        allow_nonfinite: Go on where weights are NaN or infinite.
        name: What the source is called, for the record; by default its path.
        overwrite: Replace an output that is there.
        resume: Go on where an earlier run was broken off.
        progress: Who is told how far it is.

    Raises:
        CheckpointError: The source is damaged, not quantized, or holds NaN.
        QwenVLError: The output exists, lies inside the source, or does not fit the disk.
    """
    progress = progress or Progress()
    output = output.expanduser().absolute()
    wanted = safetensors_dtype(dtype)
    check_output(source, output, is_file=False, overwrite=overwrite)
    with open_bundle(source, variant) as bundle:
        config = Config.from_folder(bundle.folder)
        tensors = check_tensors(bundle.tensors, config)
        formats = stored_formats(build(config), tensors)
        if not formats:
            raise CheckpointError(f"{source} is not quantized, so there is nothing to undo")
        stated = _stated_dtype(read_json(bundle.folder / "config.json"))
        jobs = _jobs(config, tensors, formats, Rules(wanted, allow_nonfinite), stated)
        order = {
            "source": fingerprint(bundle),
            "dequantize": variant,
            "dtype": dtype,
            "format": FORMAT_VERSION,
        }
        with drafting(output, order, resume=resume, overwrite=overwrite) as draft, progress:
            pieces = [Piece((DENSE,), tuple(jobs))]
            record = Record(
                source=source_name(name or str(source), source),
                revision=source_revision(source),
                variants={DENSE: None},
                dtype=dtype,
            )
            finished = write_output(draft, output, bundle.folder, pieces, record, False, progress)
            # It may have come into being meanwhile.
            check_output(source, output, is_file=False, overwrite=overwrite)
            publish(finished, output)
    nbytes = pieces[0].nbytes
    before = sum(tensor.nbytes for tensor in tensors.values())
    return Outcome(output, before, nbytes, {DENSE: nbytes}, {}, ())


def _jobs(
    config: Config,
    tensors: Mapping[str, StoredTensor],
    formats: Mapping[str, Format],
    rules: Rules,
    stated: str,
) -> list[TensorJob]:
    modules = dict(build(config).named_modules())
    hub = to_nested if config.is_nested else str  # a name as the Hub's checkpoints have it

    def dense(path: str) -> Copy | Dequantize:
        """A module's weight, whether it is quantized or not."""
        if path not in formats:
            return Copy(hub(f"{path}.weight"), tensors[f"{path}.weight"], rules)
        kinds = ("weight", "scales", "biases")
        parts = {k: tensors[f"{path}.{k}"] for k in kinds if f"{path}.{k}" in tensors}
        scales = parts["scales"].dtype
        dtype = rules.dtype or (scales if scales in FLOATS else stated)
        inputs = modules[path].weight.shape[-1]
        finite = rules.allow_nonfinite
        return Dequantize(hub(path), parts, formats[path], inputs, dtype, finite)

    jobs: list[TensorJob] = []
    for name, tensor in tensors.items():
        path, _, part = name.rpartition(".")
        experts = beside(path)
        if part == "weight" and experts is not None:
            stored, paths = experts
            if path == paths[0]:
                jobs.append(Beside(hub(stored), tuple(dense(each) for each in paths)))
        elif path in formats and part == "weight":
            jobs.append(dense(path))
        elif path not in formats or part == "bias":
            check_floats([tensor])
            is_mlx = path == PATCH_EMBED and tensor.shape[-1] == config.vision.in_channels
            is_mlx = is_mlx and part == "weight"
            jobs.append(Copy(hub(name), tensor, rules, MLX_TO_TORCH if is_mlx else None))
    return jobs


def _stated_dtype(settings: Mapping[str, Any]) -> str:
    text = settings.get("text_config")
    for section in (settings, text if isinstance(text, dict) else {}):
        for key in DTYPE_KEYS:
            if section.get(key) in DTYPES:
                return DTYPES[section[key]]
    return DTYPES["bfloat16"]
