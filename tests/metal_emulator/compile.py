"""Kernel text -> shared library, kept under a name made of its content."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .ast_checks import check_tree
from .errors import MetalError
from .toolchain import Toolchain, toolchain

Contract = Literal["fast", "off"]

_HERE = Path(__file__).parent
_HEADERS = sorted((_HERE / "msl").glob("*.h"))
_RUNTIME = sorted((_HERE / "runtime").glob("*.cpp"))

_UNDEFINED = "bounds,shift,integer-divide-by-zero,signed-integer-overflow,alignment,return"
_FLAGS = (
    "-std=c++17 -nostdinc -ffreestanding -fno-exceptions -fno-rtti -fPIC -O1 -gdwarf-4 "
    "-gline-tables-only -fdebug-compilation-dir=. -fno-color-diagnostics -ferror-limit=8 "
    "-Wall -Wimplicit-float-conversion -Wno-unknown-attributes -Wno-unused "
    "-Wno-ignored-attributes -Wno-unknown-pragmas -Wno-pass-failed -Wno-pragma-once-outside-header "
    "-Werror=uninitialized -Werror=sometimes-uninitialized -Werror=return-type "
    # Every half and bfloat operation rounds, and 2.0 is a float.
    "-Xclang -ffloat16-excess-precision=none -Xclang -fbfloat16-excess-precision=none "
    "-Xclang -cl-single-precision-constant "
    # A local that is read before it is written gives no zero, and a loop without end stays one.
    "-ftrivial-auto-var-init=pattern -fno-finite-loops "
    # Without it a read just before a write of the same address is not reported.
    "-mllvm -tsan-instrument-read-before-write=1 "
    f"-fsanitize=thread,{_UNDEFINED},unreachable -fno-sanitize-recover=all"
).split()
_RUNTIME_FLAGS = ["-x", "c++", "-std=c++17", "-O2", "-g0", "-fPIC", "-fno-exceptions", "-fno-rtti"]


@dataclass(frozen=True)
class Compiled:
    """A kernel that can be run."""

    library: Path
    warnings: tuple[str, ...]
    seconds: float  # 0.0 where it was compiled before


def compile_kernel(text: str, contract: Contract) -> Compiled:
    """Compile what ``rewrite.clang_text`` made, unless that was done before."""
    tools = toolchain()
    shim, runtime = _precompiled_shim(contract), _runtime()
    checks = (_HERE / "ast_checks.py").read_text()
    key = _digest(text, shim.parent.name, checks, *(part.name for part in runtime))
    library, log = tools.cache / f"kernel-{key}.so", tools.cache / f"kernel-{key}.warnings"
    if library.exists() and log.exists():
        os.utime(library)
        os.utime(log)
        return Compiled(library, tuple(log.read_text().splitlines()), 0.0)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="metal-emulator-") as name:
        folder = Path(name)
        warnings = _compile(tools, shim, text, _kernel_flags(contract), folder)
        linked = _start(tools, [*tools.linker, "kernel.o", *map(str, runtime), "-o", "k"], folder)
        _, errors = linked.communicate()
        if linked.returncode:
            raise RuntimeError(f"the kernel cannot be linked: {errors}")
        _keep("\n".join(warnings).encode(), log)
        _keep((folder / "k").read_bytes(), library)
    return Compiled(library, warnings, time.perf_counter() - start)


def _compile(
    tools: Toolchain, shim: Path, text: str, flags: Sequence[str], folder: Path
) -> tuple[str, ...]:
    (folder / "kernel.cpp").write_text(text)
    clang = [*tools.clang, *flags, "-x", "c++", "-include-pch", str(shim), "kernel.cpp"]
    compiling = _start(tools, [*clang, "-c", "-o", "kernel.o"], folder)
    dumping = _start(tools, [*clang, "-fsyntax-only", "-w", "-Xclang", "-ast-dump"], folder)
    dump, _ = dumping.communicate()
    _, messages = compiling.communicate()
    if compiling.returncode:
        raise MetalError("compile", messages.strip())
    check_tree(dump)
    found = [line for line in messages.splitlines() if "warning:" in line]
    for line in found:
        if "implicit conversion" in line and ("to 'bfloat" in line or "to '__bf16'" in line):
            raise MetalError("lint", f"implicit conversion to bfloat: {line}")
    return tuple(found)


def _kernel_flags(contract: Contract) -> list[str]:
    return [*_FLAGS, f"-ffp-contract={contract}"]


@functools.cache
def _precompiled_shim(contract: Contract) -> Path:
    """metal_shim.h as clang keeps it in memory: a kernel then compiles four times as fast."""
    tools, flags = toolchain(), _kernel_flags(contract)
    contents = [path.read_text() for path in _HEADERS]
    folder = tools.cache / f"shim-{_digest(*tools.clang, *flags, *contents)}"
    shim = folder / "shim.pch"
    if shim.exists():
        return shim
    folder.mkdir(exist_ok=True)
    # clang wants the headers as old as they were: a copy that nobody touches.
    for path, content in zip(_HEADERS, contents, strict=True):
        if not (folder / path.name).exists():
            _keep(content.encode(), folder / path.name)
    with tempfile.TemporaryDirectory(prefix="metal-emulator-") as name:
        header = str(folder / "metal_shim.h")
        out = Path(name, "shim.pch")
        command = [*tools.clang, *flags, "-x", "c++-header", header, "-o", str(out)]
        building = _start(tools, command, Path(name))
        _, errors = building.communicate()
        if building.returncode:
            raise RuntimeError(f"metal_shim.h cannot be compiled: {errors}")
        _keep(out.read_bytes(), shim)
    return shim


@functools.cache
def _runtime() -> tuple[Path, ...]:
    """The runtime's object files."""
    tools = toolchain()
    command = [*tools.clang_for_runtime, *_RUNTIME_FLAGS]
    header = (_HERE / "runtime" / "runtime.h").read_text()
    objects = []
    for source in _RUNTIME:
        key = _digest(source.read_text(), header, *command)
        kept = tools.cache / f"runtime-{source.stem}-{key}.o"
        objects.append(kept)
        if kept.exists():
            continue
        with tempfile.TemporaryDirectory(prefix="metal-emulator-") as name:
            out = Path(name, "out.o")
            building = _start(tools, [*command, "-c", str(source), "-o", str(out)], Path(name))
            _, errors = building.communicate()
            if building.returncode:
                raise RuntimeError(f"{source.name} cannot be compiled: {errors}")
            _keep(out.read_bytes(), kept)
    return tuple(objects)


def _start(tools: Toolchain, command: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=folder,
        env=tools.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _keep(content: bytes, path: Path) -> None:
    """Write a file that other processes see whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
