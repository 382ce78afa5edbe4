"""Time and memory of converting, against mlx-vlm on the same folder in the same run.

    python -m benchmarks.against_mlx_vlm FOLDER --peer-python PYTHON [--size 2b] [--rounds 3]

FOLDER is made where it is not there: a published model's shapes with random weights in bfloat16
and two files (4.4 GB for the 2B), or the tiny model of the tests. Both commands run in turn, whole,
from start to exit, and write beside FOLDER what is removed again; that needs half of FOLDER's size
twice. Memory is the peak of resident memory that the kernel counts for the process; tensors that
differ between the two outputs are listed. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# This process stays small and so imports neither MLX nor the package: a child's peak is counted
# from before it becomes another program, when its memory is still this one's.
ROOT = Path(__file__).parent.parent
SHARDS = 2
CHUNK = 2**22  # bytes read at once
WRITERS = {
    "tiny": "from tests.golden.tiny import write_checkpoint as write;"
    "write(Path(sys.argv[1]), dtype='bfloat16', shards=int(sys.argv[2]))",
    "published": "from benchmarks.full_shape import write;"
    "write(Path(sys.argv[1]), sys.argv[3], shards=int(sys.argv[2]))",
}


@dataclass(frozen=True)
class Run:
    """One run of one command.

    Attributes:
        seconds: Wall time.
        cpu_seconds: Time of all its threads.
        peak_bytes: Most resident memory.
        output_bytes: Bytes of the weights that it wrote.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    output_bytes: int


def measure(command: Sequence[str | Path], pythonpath: str, output: Path) -> Run:
    """Run a command to its end.

    Raises:
        SystemExit: It failed.
    """
    environment = {**os.environ, "PYTHONPATH": pythonpath, "HF_HUB_OFFLINE": "1"}
    begin = time.perf_counter()
    with subprocess.Popen(
        list(map(str, command)),
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None, "it was asked for"
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begin
    if process.returncode:
        raise SystemExit(f"{command} gave {process.returncode}: {said.strip()[-500:]}")
    return Run(
        seconds,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),  # Linux counts in kilobytes
        sum(file.stat().st_size for file in output.rglob("*.safetensors")),
    )


def make_source(folder: Path, size: str) -> None:
    """Write the checkpoint in a process of its own, and have it in the page cache."""
    if not folder.exists():
        writer = WRITERS["tiny" if size == "tiny" else "published"]
        code = f"import sys; from pathlib import Path; {writer}"
        command = [sys.executable, "-c", code, str(folder), str(SHARDS), size]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, check=True)
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            while opened.read(CHUNK):
                pass


def digests(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Dtype, shape and SHA-256 of every tensor in a folder."""
    found: dict[str, tuple[Any, ...]] = {}
    for file in folder.rglob("*.safetensors"):
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                opened.seek(8 + length + begin)
                digest, left = hashlib.sha256(), end - begin
                while left:
                    piece = opened.read(min(CHUNK, left))
                    digest.update(piece)
                    left -= len(piece)
                found[name] = (entry["dtype"], *entry["shape"], digest.hexdigest())
    return found


def differences(ours: Path, theirs: Path) -> list[str]:
    """Names of tensors that the two outputs do not have alike."""
    first, second = digests(ours), digests(theirs)
    return sorted(name for name in first | second if first.get(name) != second.get(name))


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """The median time, the highest peak, and every run."""
    return {
        "median_s": round(statistics.median(run.seconds for run in runs), 2),
        "peak_bytes": max(run.peak_bytes for run in runs),
        "output_bytes": runs[-1].output_bytes,
        "runs": [asdict(run) for run in runs],
    }


def main() -> None:
    """Make the folder, run both in turn, and tell."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("--peer-python", required=True, help="a Python that has mlx-vlm")
    p.add_argument("--size", choices=["tiny", "2b", "7b"], default="2b")
    p.add_argument("--bits", type=int, default=4)
    p.add_argument("--rounds", type=int, default=3)
    arguments = p.parse_args()
    folder: Path = arguments.folder.absolute()
    make_source(folder, arguments.size)
    outputs = {name: folder.with_name(f"{folder.name}-{name}") for name in ("ours", "theirs")}
    peer, bits = arguments.peer_python, str(arguments.bits)
    commands: dict[str, list[str | Path]] = {
        "ours": [
            *(sys.executable, "-m", "convert", "--model", folder),
            *("--output", outputs["ours"], "--quantize", f"{bits}bit"),
        ],
        "theirs": [
            *(peer, "-m", "mlx_vlm", "convert", "--hf-path", folder),
            *("--mlx-path", outputs["theirs"], "-q", "--q-bits", bits, "--q-group-size", "64"),
        ],
    }
    paths = {"ours": str(ROOT), "theirs": ""}
    runs: dict[str, list[Run]] = {"ours": [], "theirs": []}
    try:
        for number in range(arguments.rounds):
            # Whoever comes first in one round comes last in the next.
            for name in list(commands)[:: -1 if number % 2 else 1]:
                shutil.rmtree(outputs[name], ignore_errors=True)
                run = measure(commands[name], paths[name], outputs[name])
                runs[name].append(run)
                print(
                    f"round {number + 1} {name:>6}: {run.seconds:7.2f} s, "
                    f"{run.peak_bytes / 1e9:6.3f} GB resident, "
                    f"{run.output_bytes / 1e9:6.3f} GB written"
                )
        differing = differences(outputs["ours"], outputs["theirs"])
    finally:
        for output in outputs.values():
            shutil.rmtree(output, ignore_errors=True)
    source_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    figures = {
        "size": arguments.size,
        "bits": arguments.bits,
        "source_bytes": source_bytes,
        "ours": summary(runs["ours"]),
        "theirs": summary(runs["theirs"]),
        "differing_tensors": differing,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
