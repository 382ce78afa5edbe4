"""Do our folders open in mlx-vlm and mlx-lm, and mlx-vlm's here, with equal logits?

    python -m benchmarks.interchange --peer-python PYTHON [--model tiny --model demo]

PYTHON is one that has mlx-vlm and mlx-lm; they are run in processes of their own. Both sides get
the same token ids and pixels, and cast weights and activations to float32, so what is left between
them is the order of sums. Prints a Markdown table and exits with 1 where logits differ by more than
`TOLERANCE`, where a folder does not open, and where a quantized one answers as its source does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from mlx_qwenvl import QwenVL, load
from mlx_qwenvl.inputs.messages import user_message
from mlx_qwenvl.inputs.prompt import build_prompt
from mlx_qwenvl.weights.resolve import DEMO_FOLDER
from tests.golden.tiny import picture, write_checkpoint

# Of the largest logit. Sums in another order move the features of a picture by 6e-6 of 10; as much
# noise on them moves the demo's logits of up to 24 by 2e-5 to 2.4e-4, most where 4 bits are coarse.
TOLERANCE = 1e-5
PIXEL_TOLERANCE = 1e-6  # of a normalized pixel
NESTED = "tiny-nested"  # as Transformers 5 saves it, which mlx-vlm 0.7 does not convert
MODELS = ("tiny", "tiny-untied", NESTED, "demo")
ROOT = Path(__file__).parent.parent
QUESTION, TEXT = "What is shown in this image?", "Hello! Who are you?"
PICTURE = picture(31, 112, 84)
TOPOLOGY = """\
1-2: {quantize: 3bit}
/down_proj/: {quantize: 6bit}
/visual.blocks/: {quantize: 8bit}
/visual.merger/: {quantize: 5bit}
"""

# Options of our converter; what the rows of the table are called.
OURS = {
    "none": [],
    "4bit": ["--quantize", "4bit"],
    "4bit-g32": ["--quantize", "4bit", "--group-size", "32"],
    "8bit, vision 8bit": ["--quantize", "8bit", "--vision-bits", "8"],
    "4bit, vision 4bit": ["--quantize", "4bit", "--vision-bits", "4"],
    "mixed_4_6": ["--quantize", "mixed_4_6"],
    "mixed_3_6, vision 8bit": ["--quantize", "mixed_3_6", "--vision-bits", "8"],
    "mxfp4": ["--quantize", "mxfp4"],
    "mxfp4, vision 8bit": ["--quantize", "mxfp4", "--vision-bits", "8"],
    "mxfp8": ["--quantize", "mxfp8"],
    "nvfp4": ["--quantize", "nvfp4"],
    "4bit with a topology": ["--quantize", "4bit", "--topology", "{topology}"],
    "4bit of 4bit,6bit,8bit": ["--quantize", "4bit,6bit,8bit"],
}
# Options of mlx-vlm's converter; bits alone stand for its old style.
THEIRS: dict[str, list[str] | int] = {
    "none": [],
    "4bit": ["-q", "--q-bits", "4"],
    "8bit-g32": ["-q", "--q-bits", "8", "--q-group-size", "32"],
    "mixed_4_6": ["-q", "--quant-predicate", "mixed_4_6"],
    "mxfp4": ["-q", "--q-mode", "mxfp4"],
    "mxfp8": ["-q", "--q-mode", "mxfp8"],
    "nvfp4": ["-q", "--q-mode", "nvfp4"],
    "4bit, old style": 4,
    "8bit, old style": 8,
}


@dataclass(frozen=True)
class Case:
    """One folder and one library that shall agree with us on it.

    Attributes:
        model: What was converted.
        writer: Who converted it.
        recipe: How.
        reader: The library that opens it too.
        folder: The result.
    """

    model: str
    writer: str
    recipe: str
    reader: str
    folder: Path


@dataclass(frozen=True)
class Result:
    """How well both sides agree.

    Attributes:
        case: What was compared.
        image: Largest difference of a logit behind a picture, as a share of the largest logit, or
            None where no picture was asked about.
        text: The same for text alone.
        from_source: The same between us and the unquantized model, which quantizing must move.
        processor: What its own processor made of the picture: "same", or what differs.
        error: Why it did not open, or nothing.
    """

    case: Case
    image: float | None = None
    text: float | None = None
    from_source: float | None = None
    processor: str = ""
    error: str = ""

    @property
    def is_equal(self) -> bool:
        """Whether the case holds."""
        differences = [value for value in (self.image, self.text) if value is not None]
        is_quantized = self.case.recipe != "none"
        return (
            not self.error
            and bool(differences)
            and max(differences) <= TOLERANCE
            and self.processor in ("", "same")
            and self.from_source is not None
            and (self.from_source > TOLERANCE) == is_quantized
        )


def write_inputs(vlm: QwenVL, folder: Path) -> Path:
    """Write what both sides are given: token ids, normalized pixels, the picture itself."""
    PICTURE.save(folder / "picture.png")
    prompts = [
        build_prompt([turn], vlm.template, vlm.tokenizer, vlm.processor.open)
        for turn in (user_message(QUESTION, [PICTURE]), user_message(TEXT, ()))
    ]
    image = prompts[0].slots[0].image
    side = image.geometry.patch_size
    mean, std = (
        np.array(values).reshape(1, 3, 1, 1, 1)
        for values in (vlm.processor.normalization.mean, vlm.processor.normalization.std)
    )
    pixels = (image.patches.reshape(-1, 3, 1, side, side) / 255 - mean) / std
    frames = np.repeat(pixels, image.geometry.temporal_patch_size, axis=2)
    np.savez(
        folder / "inputs.npz",
        input_ids=prompts[0].token_ids[None],
        text_ids=prompts[1].token_ids[None],
        pixel_values=frames.reshape(len(frames), -1).astype(np.float32),
        image_grid_thw=np.array([image.grid_thw]),
        picture=np.array(str(folder / "picture.png")),
        question=np.array(QUESTION),
    )
    return folder / "inputs.npz"


def command(arguments: Sequence[str | Path], *, pythonpath: str = "") -> None:
    """Run a converter, quietly unless it fails."""
    environment = {**os.environ, "PYTHONPATH": pythonpath, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        list(map(str, arguments)), env=environment, cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise RuntimeError(f"exit {done.returncode}: {''.join(last)}"[:300])


def convert_all(
    model: str, source: Path, place: Path, peer: str
) -> tuple[list[Case], list[Result]]:
    """Convert a model in every way; those that fail are results already."""
    cases: list[Case] = []
    failed: list[Result] = []
    (place / "topology.yml").write_text(TOPOLOGY, encoding="utf-8")
    for number, (recipe, given) in enumerate(OURS.items()):
        folder = place / f"ours-{number}"
        options = [option.format(topology=place / "topology.yml") for option in given]
        ours: list[str | Path] = [sys.executable, "-m", "convert", "--model", source]
        ours += ["--output", folder, *options]
        both = [Case(model, "ours", recipe, reader, folder) for reader in ("mlx-vlm", "mlx-lm")]
        try:
            command(ours, pythonpath=str(ROOT))
            cases += both
        except RuntimeError as error:
            failed += [Result(case, error=str(error)) for case in both]
    for number, (recipe, how) in enumerate(THEIRS.items() if model != NESTED else ()):
        folder = place / f"theirs-{number}"
        case = Case(model, "mlx-vlm", recipe, "mlx-vlm", folder)
        if isinstance(how, int):
            old = Path(__file__).with_name("peer_convert.py")
            theirs: list[str | Path] = [peer, old, source, folder, str(how)]
        else:
            theirs = [peer, "-m", "mlx_vlm", "convert", "--hf-path", source]
            theirs += ["--mlx-path", folder, *how]
        try:
            command(theirs)
            cases.append(case)
        except RuntimeError as error:
            failed.append(Result(case, error=str(error)))
    return cases, failed


def ask_peer(cases: Sequence[Case], inputs: Path, place: Path, peer: str) -> list[str | None]:
    """Let the other libraries answer; gives an error for each case, or None."""
    jobs = [
        {
            "library": case.reader,
            "folder": str(case.folder),
            "inputs": str(inputs),
            "output": str(place / f"{number}.npz"),
        }
        for number, case in enumerate(cases)
    ]
    (place / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    done = subprocess.run(
        [peer, str(Path(__file__).with_name("peer_logits.py")), str(place / "jobs.json")],
        env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    told = [json.loads(line)["error"] for line in done.stdout.splitlines() if line[:1] == "{"]
    return told + ["the process died"] * (len(cases) - len(told))


def compare(case: Case, output: Path, inputs: Path, source: QwenVL) -> Result:
    """Hold a library's logits against ours."""
    vlm = load(case.folder, dtype="float32")
    theirs, given = np.load(output), np.load(inputs)
    text = vlm.logits(TEXT)
    text_apart = _apart(text, theirs["text_logits"])
    if "logits" not in theirs:
        return Result(case, None, text_apart, _apart(text, source.logits(TEXT)))
    answer = vlm.logits(QUESTION, images=[PICTURE])
    return Result(
        case,
        _apart(answer, theirs["logits"]),
        text_apart,
        _apart(answer, source.logits(QUESTION, images=[PICTURE])),
        _processor(theirs, given),
    )


def _processor(theirs: np.lib.npyio.NpzFile, given: np.lib.npyio.NpzFile) -> str:
    for name in ("input_ids", "image_grid_thw"):
        if not np.array_equal(theirs[f"own_{name}"], given[name]):
            return f"other {name}"
    difference = float(np.abs(theirs["own_pixel_values"] - given["pixel_values"]).max())
    return "same" if difference <= PIXEL_TOLERANCE else f"pixels differ by {difference:.1e}"


def _apart(ours: np.ndarray, others: np.ndarray) -> float:
    """Largest difference as a share of the largest logit."""
    if ours.shape != others.shape or not np.isfinite(others).all():
        return float("inf")
    return float(np.abs(ours - others).max() / np.abs(ours).max())


def sources(names: Sequence[str], place: Path) -> dict[str, Path]:
    """The models to convert."""
    made = {
        "tiny": lambda: write_checkpoint(place / "tiny"),
        "tiny-untied": lambda: write_checkpoint(place / "tiny-untied", tied=False, shards=2),
        NESTED: lambda: write_checkpoint(place / NESTED, layout="nested"),
        "demo": lambda: DEMO_FOLDER,
    }
    return {name: made[name]() for name in names}


def table(results: Sequence[Result]) -> str:
    """All results as Markdown."""
    titles = ["model", "written by", "recipe", "read by", "picture", "text", "from source"]
    titles += ["processor", "equal"]
    lines = [titles, ["---"] * len(titles)]
    for result in results:
        case = result.case
        numbers = [
            "" if value is None else f"{value:.1e}"
            for value in (result.image, result.text, result.from_source)
        ]
        end = [result.processor, "yes" if result.is_equal else f"**no** {result.error}"]
        lines.append([case.model, case.writer, case.recipe, case.reader, *numbers, *end])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> int:
    """Convert, ask, compare and tell."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--peer-python", required=True, help="a Python that has mlx-vlm and mlx-lm")
    p.add_argument("--model", action="append", choices=MODELS, help="by default all")
    arguments = p.parse_args()
    results: list[Result] = []
    with TemporaryDirectory() as name:
        place = Path(name)
        for model, source in sources(arguments.model or MODELS, place).items():
            room = place / f"{model}-room"
            room.mkdir()
            vlm = load(source, dtype="float32")
            inputs = write_inputs(vlm, room)
            cases, failed = convert_all(model, source, room, arguments.peer_python)
            errors = ask_peer(cases, inputs, room, arguments.peer_python)
            for number, (case, error) in enumerate(zip(cases, errors, strict=True)):
                if error is None:
                    results.append(compare(case, room / f"{number}.npz", inputs, vlm))
                else:
                    results.append(Result(case, error=error))
            results += failed
    print(table(results))
    return 0 if all(result.is_equal for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
