"""The same targets under libFuzzer, by a Python that has atheris: it also sees what is compared.

    python -m benchmarks.fuzz.with_atheris TARGET CORPUS_FOLDER [LIBFUZZER_OPTION ...]

Takes libFuzzer's options, such as -max_total_time=600 and -jobs=2; an input that breaks something
is written by it as crash-*, and the corpus stays in its folder for the next run. Half of the
mutations are the target's own, half libFuzzer's.
"""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path
from typing import Any

OURS = ["mlx_qwenvl.inputs", "mlx_qwenvl.engine.tool_calls", "server", "PIL"]
OWN = 0.5  # share of the target's own mutations


def main(argv: list[str]) -> None:
    """Fuzz until something breaks or the time is over."""
    atheris: Any = importlib.import_module("atheris")
    name, folder = argv[1], Path(argv[2])
    with atheris.instrument_imports(include=OURS):
        targets = importlib.import_module("benchmarks.fuzz.targets")
        target = targets.target_of(name)
        from benchmarks.fuzz.loop import no_stderr
        from benchmarks.fuzz.target import judge
    good = target.seeds()
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(good):
        (folder / f"seed-{number:03}").write_bytes(data)

    def run(data: bytes) -> None:
        with no_stderr():
            verdict = judge(target, data)
        if verdict.fault:
            raise RuntimeError(verdict.fault)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        drawn = random.Random(seed)
        if drawn.random() < OWN:
            return bytes(target.mutate(drawn, data, drawn.choice(good)))[:most]
        return bytes(atheris.Mutate(data, most))

    options = ["-max_len=262144", "-timeout=60", *argv[3:]]
    atheris.Setup([argv[0], *options, str(folder)], run, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
