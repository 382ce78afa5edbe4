"""Python, this package, and what it is built on."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from mlx_qwenvl import __version__
from mlx_qwenvl.doctoring.finding import Finding
from mlx_qwenvl.inputs.pyav import EXPECTED, INSTALL, find_pyav

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PACKAGE = "mlx-qwenvl"
OLDEST, NEWEST = (3, 10), (3, 13)  # that this package is tested with
# Extras for those who work on the package, and one that is the sum of others.
NOT_FOR_USERS = {"all", "clients", "docs", "test", "train"}
TOLD_APART = {"video"}  # by `videos`, which loads it


def python() -> Iterator[Finding]:
    """The interpreter."""
    value = f"{platform.python_version()}, {platform.python_implementation()}"
    if sys.version_info[:2] < OLDEST:
        advice = f"needed is {_dotted(OLDEST)} or later"
        yield Finding("Python", value, "broken", advice)
    elif sys.version_info[:2] > NEWEST:
        advice = f"tested are {_dotted(OLDEST)} to {_dotted(NEWEST)}; take one of them if it fails"
        yield Finding("Python", value, "note", advice)
    else:
        yield Finding("Python", value)


def own() -> Iterator[Finding]:
    """This package, as installed and as it runs."""
    try:
        installed = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        advice = "install it: pip install -e . in the checkout"
        yield Finding(PACKAGE, f"{__version__}, not installed", "note", advice)
        return
    if installed == __version__:
        yield Finding(PACKAGE, __version__)
    else:
        advice = "install it anew: pip install -e . in the checkout, or pip install -U mlx-qwenvl"
        yield Finding(PACKAGE, f"{__version__}, installed as {installed}", "note", advice)


def dependencies() -> Iterator[Finding]:
    """What is always needed; one finding for all that is as it has to be."""
    sound = []
    for needed in requirements(None):
        found = _version(needed)
        if found is None or not needed.specifier.contains(found, prereleases=True):
            value = "is missing" if found is None else f"{found}, needed is {needed.specifier}"
            advice = f"pip install '{needed.name}{needed.specifier}'"
            yield Finding(needed.name, value, "broken", advice)
        else:
            sound.append(f"{needed.name} {found}")
    if sound:
        yield Finding("built on", ", ".join(sound), data=dict(s.split(" ") for s in sound))


def extras() -> Iterator[Finding]:
    """What may be installed beside it."""
    for extra in sorted(set(metadata.metadata(PACKAGE).get_all("Provides-Extra") or ())):
        if extra in NOT_FOR_USERS | TOLD_APART:
            continue
        install = f"pip install '{PACKAGE}[{extra}]'"
        needed = requirements(extra)
        found = {one.name: _version(one) for one in needed}
        missing = [name for name, version in found.items() if version is None]
        old = [
            f"{one.name} {found[one.name]}, needed is {one.specifier}"
            for one in needed
            if not one.specifier.contains(found[one.name] or "0", prereleases=True)
            and one.name not in missing
        ]
        name = f"extra {extra}"
        if missing:
            yield Finding(name, f"not installed; {install}", data=False)
        elif old:
            yield Finding(name, "; ".join(old), "note", install, data=False)
        else:
            value = ", ".join(f"{name} {version}" for name, version in found.items())
            yield Finding(name, value, data=True)


def videos() -> Iterator[Finding]:
    """PyAV, which decodes videos."""
    found = find_pyav()
    if found.version is None:
        value = f"not installed; {INSTALL} brings it, {EXPECTED} or later"
        yield Finding("PyAV", value, data=False)
    elif found.fault:
        value = f"{found.version or 'cannot be loaded'}; expected is {EXPECTED} or later"
        yield Finding("PyAV", value, "note", found.fault, data=False)
    else:
        value = f"{found.version}, for videos; expected is {EXPECTED} or later"
        yield Finding("PyAV", value, data=True)


def requirements(extra: str | None) -> list[Requirement]:
    """What the package needs here, or what one of its extras adds.

    Raises:
        PackageNotFoundError: The package is not installed.
    """
    # Imported here: where packages are missing, this one may be missing too.
    from packaging.requirements import Requirement

    found = []
    for text in metadata.requires(PACKAGE) or ():
        needed = Requirement(text)
        marker = needed.marker
        is_extra = marker is not None and "extra" in str(marker)
        if is_extra == (extra is not None) and (
            marker is None or marker.evaluate({"extra": extra or ""})
        ):
            found.append(needed)
    return found


def _version(needed: Requirement) -> str | None:
    try:
        return metadata.version(needed.name)
    except metadata.PackageNotFoundError:
        return None


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
