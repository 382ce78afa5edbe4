"""`mlx-qwenvl doctor`: what works here and what does not, as text to paste into a report."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from mlx_qwenvl.command import EXIT_ERROR, EXIT_OK, Parser, run
from mlx_qwenvl.doctoring.examine import examine
from mlx_qwenvl.doctoring.finding import Finding
from mlx_qwenvl.doctoring.telling import is_healthy, to_dict, to_end, to_line

PROGRAM = "mlx-qwenvl doctor"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog=PROGRAM,
        description="Tell what works here and what does not, as text to paste into a report.",
        epilog="No network is asked, and no home folder or user's name is told. Exit code 1: "
        "something is broken.",
    )
    p.add_argument("--json", action="store_true", help="print one JSON object")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code."""
    arguments = parser().parse_args(argv)
    return run(lambda: _examine(as_json=arguments.json), PROGRAM)


def _examine(*, as_json: bool) -> int:
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # paths may hold what a terminal cannot show
    found: list[Finding] = []
    if as_json:
        sections = [(heading, list(findings)) for heading, findings in examine()]
        found = [finding for _, findings in sections for finding in findings]
        print(json.dumps(to_dict(sections)))
        return EXIT_OK if is_healthy(found) else EXIT_ERROR
    print("```text\nmlx-qwenvl doctor")
    for heading, findings in examine():
        print(f"\n{heading}", flush=True)
        for finding in findings:
            # Each at once: should the next look end everything, it is known what came before.
            print(to_line(finding), flush=True)
            found.append(finding)
    print("\n" + "\n".join(to_end(found)) + "\n```")
    return EXIT_OK if is_healthy(found) else EXIT_ERROR


if __name__ == "__main__":
    sys.exit(main())
