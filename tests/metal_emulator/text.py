"""What MLX makes of a kernel's source: the text that Metal compiles, letter by letter.

MLX declares only what a source names, found as a substring: ``x_shape`` also where it stands in
a comment or in ``xx_shape``, and never where only the header has it. An input of fewer than
eight elements lies in ``constant`` memory, so a kernel may compile at one size and not another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy.typing as npt

from .dtypes import Array, TemplateValue, metal_type, template_argument

CONSTANT_BELOW = 8  # elements

# Attribute -> its type and its first slot in the runtime (runtime.h); None: not emulated.
ATTRIBUTES: dict[str, tuple[str, int | None]] = {
    "dispatch_quadgroups_per_threadgroup": ("uint", None),
    "dispatch_simdgroups_per_threadgroup": ("uint", 25),
    "dispatch_threads_per_threadgroup": ("uint3", 18),
    "grid_origin": ("uint3", 27),
    "grid_size": ("uint3", 12),
    "quadgroup_index_in_threadgroup": ("uint", None),
    "quadgroups_per_threadgroup": ("uint", None),
    "simdgroup_index_in_threadgroup": ("uint", 23),
    "simdgroups_per_threadgroup": ("uint", 24),
    "thread_execution_width": ("uint", 26),
    "thread_index_in_quadgroup": ("uint", None),
    "thread_index_in_simdgroup": ("uint", 22),
    "thread_index_in_threadgroup": ("uint", 21),
    "thread_position_in_grid": ("uint3", 0),
    "thread_position_in_threadgroup": ("uint3", 3),
    "threadgroup_position_in_grid": ("uint3", 6),
    "threadgroups_per_grid": ("uint3", 9),
    "threads_per_grid": ("uint3", 12),
    "threads_per_simdgroup": ("uint", 26),
    "threads_per_threadgroup": ("uint3", 15),
}


@dataclass(frozen=True)
class KernelSource:
    """A kernel as ``mx.fast.metal_kernel`` takes it."""

    name: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    source: str
    header: str = ""
    ensure_row_contiguous: bool = True
    atomic_outputs: bool = False


@dataclass(frozen=True)
class Parameter:
    """One buffer: how it is declared, and the input or output it comes from."""

    declared: str  # "const device float*"
    name: str
    role: Literal["input", "shape", "strides", "ndim", "output"]
    index: int


@dataclass(frozen=True)
class Signature:
    """What MLX declares around a source, for inputs and template arguments of one kind."""

    function: str
    parameters: tuple[Parameter, ...]
    attributes: tuple[str, ...]
    template_parameters: str  # "typename T, int D", or nothing
    template_arguments: str  # "<float, 128>", or nothing

    def head(self) -> str:
        """From ``template`` up to the brace that opens the body."""
        lines = [f"{p.declared} {p.name} [[buffer({i})]]" for i, p in enumerate(self.parameters)]
        lines += [f"{ATTRIBUTES[name][0]} {name} [[{name}]]" for name in self.attributes]
        template = f"template <{self.template_parameters}>\n" if self.template_parameters else ""
        return (
            f"{template}[[kernel]] void {self.function}(\n  "
            + "".join(line + end for line, end in zip(lines, self._ends(len(lines)), strict=True))
            + ") {\n"
        )

    def _ends(self, count: int) -> list[str]:
        """What stands after each declaration.

        Without any attribute MLX counts only inputs and outputs: where shapes were declared too,
        it closes the list before every one of the last outputs, and Metal refuses the text.
        """
        ends = [",\n  "] * (count - 1) + [""]
        if not self.attributes:
            roles = [parameter.role for parameter in self.parameters]
            plain = roles.count("input") + roles.count("output")
            for i in range(count - 1):
                if roles[i] == "output" and i >= plain - 1:
                    ends[i] = ") {\n  "
        return ends


def signature(
    kernel: KernelSource,
    inputs: Sequence[Array],
    template: Sequence[tuple[str, TemplateValue]],
    output_dtypes: Sequence[npt.DTypeLike],
) -> Signature:
    """Declare a kernel for inputs of these dtypes and sizes."""
    parameters: list[Parameter] = []
    function = "custom_kernel_" + kernel.name
    arguments = ", ".join(template_argument(value)[1] for _, value in template)
    if template:
        function += "__" + arguments.replace(", ", "_")
    for i, (name, array) in enumerate(zip(kernel.input_names, inputs, strict=True)):
        constant = array.size < CONSTANT_BELOW
        dtype = metal_type(array.dtype)
        function += f"_{dtype}" + ("s" if array.ndim == 0 else "c" if constant else "")
        declared = f"const {'constant' if constant else 'device'} {dtype}"
        parameters.append(Parameter(declared + ("*" if array.ndim else "&"), name, "input", i))
        parameters += _shape_parameters(kernel.source, name, i) if array.ndim else []
    for i, (name, dtype_like) in enumerate(zip(kernel.output_names, output_dtypes, strict=True)):
        dtype = metal_type(dtype_like)
        function += f"_{dtype}"
        declared = f"atomic<{dtype}>" if kernel.atomic_outputs else dtype
        parameters.append(Parameter(f"device {declared}*", name, "output", i))
    return Signature(
        function,
        tuple(parameters),
        tuple(name for name in ATTRIBUTES if name in kernel.source),
        ", ".join(f"{template_argument(value)[0]} {name}" for name, value in template),
        f"<{arguments}>" if template else "",
    )


def _shape_parameters(source: str, name: str, index: int) -> list[Parameter]:
    found = [
        Parameter("const constant int*", f"{name}_shape", "shape", index),
        Parameter("const constant int64_t*", f"{name}_strides", "strides", index),
        Parameter("const constant int&", f"{name}_ndim", "ndim", index),
    ]
    return [parameter for parameter in found if parameter.name in source]


def kernel_text(kernel: KernelSource, declared: Signature) -> str:
    """The text that MLX hands to Metal, without its own preamble."""
    text = f"{kernel.header}{declared.head()}{kernel.source}\n}}\n"
    if declared.template_arguments:
        instance = declared.function + declared.template_arguments
        text += f'\ntemplate [[host_name("{declared.function}")]] [[kernel]] '
        text += f"decltype({instance}) {instance};\n"
    return text


def without_comments(text: str) -> str:
    """Comments become blanks, so that lines and columns stay."""
    return re.sub(
        r"//[^\n]*|/\*.*?\*/",
        lambda comment: re.sub(r"[^\n]", " ", comment[0]),
        text,
        flags=re.DOTALL,
    )
