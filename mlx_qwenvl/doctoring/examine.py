"""All that the doctor looks at, in order, one section after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from mlx_qwenvl.doctoring import chosen, hardware, places, selftest, software, variables
from mlx_qwenvl.doctoring.finding import Finding, look, reason
from mlx_qwenvl.doctoring.probe import Probe, probe

# What tells of a failure, and what looks.
Look = tuple[str, Callable[[], Iterable[Finding]]]


def examine() -> Iterator[tuple[str, Iterator[Finding]]]:
    """Headings, and findings that are looked for while they are read."""
    probed, fault = _probe()
    for heading, looks in _plan(probed, fault).items():
        yield heading, _all_of(looks)


def _plan(probed: Probe | None, fault: str | None) -> dict[str, list[Look]]:
    """What there is to look at; where MLX fails, this process does not come near it."""
    plan: dict[str, list[Look]] = {
        "Machine": [
            ("system", hardware.system),
            ("MLX", lambda: hardware.device(probed, fault)),
            ("BLAS", hardware.openblas),
        ],
        "Memory": [],
        "Software": [
            ("Python", software.python),
            (software.PACKAGE, software.own),
            ("built on", software.dependencies),
            ("extras", software.extras),
            ("PyAV", software.videos),
        ],
        "Model": [("chosen", chosen.choice)],
        "Disk": [
            ("settings", places.settings),
            ("Hub's cache", places.hub_cache),
            ("disk", places.room),
        ],
        "Environment": [("variables", variables.findings)],
        "Self-test": [],
    }
    if probed is not None:
        known = probed
        plan["Memory"] += [("memory", lambda: hardware.memory(known))]
        plan["Model"] += [("folder", lambda: chosen.state(known))]
        plan["Disk"] += [("disk cache", places.disk_cache)]
        plan["Self-test"] += [("self-test", selftest.findings)]
    return {heading: looks for heading, looks in plan.items() if looks}


def _all_of(looks: list[Look]) -> Iterator[Finding]:
    for name, find in looks:
        yield from look(name, find)


def _probe() -> tuple[Probe | None, str | None]:
    """What MLX says, or why it says nothing."""
    try:
        return probe(), None
    except Exception as error:
        return None, reason(error)
