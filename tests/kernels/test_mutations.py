"""Kernels with one mistake each: the checks that the right ones pass refuse every one of them."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import mlx.core as mx
import pytest

from mlx_qwenvl.kernels import add_rms_norm, rotate_qkv, rotate_vision, sample
from mlx_qwenvl.kernels.ops import METAL
from tests.kernels.checks import NORM, QKV, VISION
from tests.kernels.draws import DRAWS
from tests.metal_emulator import Launch, MetalError

BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"

MISTAKES: dict[str, dict[str, tuple[str, str]]] = {
    "rotate_vision": {
        "sign of the first": ("a * c - b * s", "a * c + b * s"),
        "sign of the second": ("b * c + a * s", "b * c - a * s"),
        "sine for cosine": ("cosines[", "sines["),
        "neighbours for pairs": ("from + HALF", "from + 1"),
        "half a head too short": ("to + HALF", "to + HALF - 1"),
        "values for keys": ("(3 * H)", "(2 * H)"),
        "heads of keys not counted anew": ("head % H)", "head)"),
        "first key among queries": ("head < H ?", "head <= H ?"),
        "queries for keys": ("q : k", "k : q"),
        "angle of the first patch": ("cosines[patch * HALF + pair]", "cosines[pair]"),
        "angle of the next patch": ("sines[patch *", "sines[(patch + 1) *"),
        "first picture again": (
            "(size_t(picture) * patches + patch) * (3 * H)",
            "(size_t(patch)) * (3 * H)",
        ),
        "one head again": ("first + r", "first"),
        "one head too few": ("r < SHARE", "r + 1 < SHARE"),
        "one head too many": ("r < SHARE", "r <= SHARE"),
        "patches before heads": (
            "* H + head % H) * patches + patch)",
            "* patches + patch) * H + head % H)",
        ),
        "cosine in half precision": (
            "float c = cosines[patch * HALF + pair]",
            "half c = static_cast<half>(cosines[patch * HALF + pair])",
        ),
        "pointer of a fixed address space": (
            "size_t token",
            "const device float* turn = cosines; c = turn[patch * HALF + pair]; size_t token",
        ),
    },
    "rotate_qkv": {
        "sign of the first": ("a * c - b * s", "a * c + b * s"),
        "sign of the second": ("b * c + a * s", "b * c - a * s"),
        "cosine for sine": ("precise::sin", "precise::cos"),
        "time one frequency too wide": ("pair < TIME ?", "pair <= TIME ?"),
        "height counted from the start": ("pair < TIME + HEIGHT", "pair < HEIGHT"),
        "height and width swapped": ("? 1 : 2", "? 2 : 1"),
        "turns in another order": ("? turn : 0", "? 3 - turn : 0"),
        "turns without end": ("(pair < 3 * (turn", "(pair < 9 * (turn"),
        "turns that last for height alone": ("turn == 1 ? HEIGHT", "turn >= 1 ? HEIGHT"),
        "height without end": ("? 1 : 2", "? 1 : 1"),
        "rows before axes": ("axis * rows + row", "row * 3 + axis"),
        "positions of the first row": ("axis * rows + row", "axis * rows"),
        "one row of positions read as many": ("ALIKE ? axis : ", ""),
        "position of the first token": ("stand * tokens + token", "stand * tokens"),
        "frequency of the next pair": ("inverse[pair]", "inverse[pair + 1]"),
        "frequencies backwards": ("inverse[pair]", "inverse[HALF - 1 - pair]"),
        "angle in half precision": (
            "float angle = static_cast<float>(positions[stand * tokens + token]) * inverse[pair]",
            "float angle = static_cast<float>(static_cast<half>(positions[stand * tokens + token] "
            "* inverse[pair]))",
        ),
        "keys not turned": ("if (first < Q + G)", "if (first < Q)"),
        "keys turned by nothing": ("if (head < Q + G)", "if (head < Q)"),
        "first value turned": ("if (head < Q + G)", "if (head <= Q + G)"),
        "bias of the first head": ("bias[head * D + pair])", "bias[pair])"),
        "bias of the first half": ("bias[head * D + pair + HALF]", "bias[head * D + pair]"),
        "bias where there is none": ("if (BIASED)", "if (true)"),
        "first sequence again": ("(size_t(row) * tokens + token) * HEADS", "token * HEADS"),
        "last query among keys": ("if (head < Q) {", "if (head + 1 < Q) {"),
        "keys and values interleaved": ("(head - Q) / G", "(head - Q) % 2"),
        "key heads from the queries' count": ("(head - Q) % G", "head % G"),
        "sequences before kinds": ("size_t(kind) * rows + row", "size_t(row) * 2 + kind"),
        "tokens before heads": (
            "(size_t(row) * Q + head) * tokens + token",
            "(size_t(row) * tokens + token) * Q + head",
        ),
        "one head again": ("first + r", "first"),
        "one head too few": ("r < SHARE", "r + 1 < SHARE"),
        "one head too many": ("r < SHARE", "r <= SHARE"),
        "pointer of a fixed address space": (
            "float angle = static_cast<float>(positions[",
            "const device int32_t* places = positions; float angle = static_cast<float>(places[",
        ),
    },
    "add_rms_norm": {
        "barrier missing": ("threadgroup_barrier(mem_flags::mem_threadgroup);", ""),
        "barrier of some threads": (
            "threadgroup_barrier(mem_flags::mem_threadgroup);",
            "if (group == 0) threadgroup_barrier(mem_flags::mem_threadgroup);",
        ),
        "barrier of other memory": ("mem_flags::mem_threadgroup", "mem_flags::mem_device"),
        "eps beside the width": ("squares / D + eps", "squares / (D + eps)"),
        "eps behind the root": (
            "rsqrt(squares / D + eps)",
            "rsqrt(squares / D) + eps",
        ),
        "eps left out": ("squares / D + eps", "squares / D"),
        "mean over all threads": ("squares / D", "squares / ROUND"),
        "sum for mean": ("squares / D", "squares"),
        "bounds one too wide": ("at < D", "at <= D"),
        "bounds one too narrow": ("at < D", "at + 1 < D"),
        "sum for squares": ("squares += value * value", "squares += value"),
        "squares in half precision": (
            "squares += value * value",
            "squares = static_cast<float>(static_cast<half>(squares + value * value))",
        ),
        "last SIMD-group left out": (
            "lane < THREADS / 32 ?",
            "lane + 1 < THREADS / 32 ?",
        ),
        "one SIMD-group too many": ("lane < THREADS / 32 ?", "lane <= THREADS / 32 ?"),
        "all SIMD-groups in one place": ("partial[group]", "partial[0]"),
        "one SIMD-group alone": ("if (THREADS > 32)", "if (THREADS > 1024)"),
        "each thread alone": ("    squares = simd_sum(squares);\n", ""),
        "norm of what came in": ("static_cast<float>(sum);", "static_cast<float>(x[row + at]);"),
        "weight of the first round": ("weight[at]", "weight[start + j]"),
        "rounds that overlap": ("r * ROUND + start", "r * THREADS + start"),
        "first row again": ("size_t(threadgroup_position_in_grid.x) * D", "0"),
        "a difference": (
            "static_cast<float>(x[row + at]) + ",
            "static_cast<float>(x[row + at]) - ",
        ),
    },
    "sample": {
        "first row again": ("size_t(row) * V", "0"),
        "likeliest last": (
            "uint depth = ONE - metal::min(as_type<uint>(p[start + i]), ONE)",
            "uint depth = as_type<uint>(p[start + i])",
        ),
        "masses in half precision": (
            "weight = uint(value * UNIT + 0.5f)",
            "weight = uint(float(half(value)) * UNIT)",
        ),
        "bits of another prefix": (">> (shift + BITS) == begin", ">> (shift + BITS) <= begin"),
        "bits not cut off": ("(depth >> shift) % BINS", "depth >> shift"),
        "last bits left out": ("shift >= 0", "shift > 0"),
        "bins of before": (
            "atomic_store_explicit(&masses[b]",
            "if (shift == 20) atomic_store_explicit(&masses[b]",
        ),
        "bins never emptied": (
            "atomic_store_explicit(&counts[b]",
            "if (b > BINS) atomic_store_explicit(&counts[b]",
        ),
        "one bin of each thread": (
            "for (uint e = 0; e < EACH; ++e)",
            "for (uint e = 0; e + 1 < EACH; ++e)",
        ),
        "its own bins counted twice": (
            "simd_prefix_exclusive_sum(mass)",
            "simd_prefix_inclusive_sum(mass)",
        ),
        "SIMD-groups up to its own": ("mass_before += g < group ?", "mass_before += g <= group ?"),
        "nothing before its SIMD-group": ("count_before += g < group ? group_count[g] : 0;", ""),
        "round before forgotten": ("mass_before += mass_ahead;", ""),
        "ranks before forgotten": ("count_before += count_ahead;", ""),
        "top-k one too many": ("uint goal = top_k[row];", "uint goal = top_k[row] + 1;"),
        "top-k of the first row": ("goal = top_k[row]", "goal = top_k[0]"),
        "top-k that never ends": ("metal::min(goal, whole_count)", "goal"),
        "top-p of all that there is": (
            "total = total == 0 ? whole_mass : total;",
            "total = whole_mass;",
        ),
        "top-p of the rest": (
            "total - uint((ulong(total) * beyond[row]) >> 32)",
            "uint((ulong(total) * beyond[row]) >> 32)",
        ),
        "top-p in 32 bits": ("(ulong(total) * beyond[row])", "(total * uint(beyond[row]))"),
        "top-p alone": ("by_count ? top_k[row] >= V", "by_count ? true"),
        "top-k alone": (": beyond[row] == 0", ": true"),
        "share that is reached left out": (
            "reached < goal && goal - reached <=",
            "reached < goal && goal - reached <",
        ),
        "one tie too few": ("+ mass_of_one - 1) / mass_of_one", ") / mass_of_one"),
        "ties of top-k one too many": ("goal - count_ahead\n", "goal - count_ahead + 1\n"),
        "all ties": ("all = ties == found[3]", "all = true"),
        "walk to the tie before": ("to_tie ? ties - 1", "to_tie ? metal::max(ties, 2u) - 2"),
        "tie kept but one": ("limit = found[0] + 1", "limit = found[0]"),
        "cut left out": ("depth == cut && id < limit", "false"),
        "min-p left out": ("value >= floors[row] &&", ""),
        "min-p beyond itself": ("value >= floors[row]", "value > floors[row]"),
        "chance of the first row": ("chance[row]", "chance[0]"),
        "goal reached is passed": (
            "upto - weight <= goal && goal < upto",
            "upto - weight < goal && goal <= upto",
        ),
        "lanes alone": ("reached = simd_max(upto)", "reached = upto"),
        "piece of the first": ("first = group * piece", "first = 0"),
        "pieces too short": ("(V + GROUPS - 1) / GROUPS", "V / GROUPS"),
        "pieces without end": ("if (id < end)", "if (id < first + piece)"),
        "no barrier before the bins": (
            BARRIER + "\n            for (uint i = me",
            "\n            for (uint i = me",
        ),
        "no barrier behind the bins": (BARRIER + "\n\n", "\n\n"),
        "no barrier before what was found": (
            BARRIER + "\n            begin =",
            "\n            begin =",
        ),
        "no barrier behind the walk": (BARRIER + "\n        if (to_tie)", "\n        if (to_tie)"),
        "NaN of the first row": ("as_type<uint>(p[start]) &", "as_type<uint>(p[0]) &"),
    },
}  # fmt: skip

MODULES: dict[str, tuple[ModuleType, Any]] = {
    "rotate_vision": (rotate_vision, VISION),
    "rotate_qkv": (rotate_qkv, QKV),
    "add_rms_norm": (add_rms_norm, NORM),
    "sample": (sample, DRAWS),
}


@pytest.mark.parametrize(
    ("name", "mistake"), [(name, mistake) for name in MISTAKES for mistake in MISTAKES[name]]
)
def test_the_check_refuses_a_kernel_with_one_mistake(
    name: str, mistake: str, emulated: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, cases = MODULES[name]
    right, wrong = MISTAKES[name][mistake]
    kernel = module.KERNEL
    assert right in kernel.source
    monkeypatch.setattr(
        module, "KERNEL", replace(kernel, source=kernel.source.replace(right, wrong))
    )
    with pytest.raises((AssertionError, MetalError)) as refused:
        for case in cases:
            case.check(getattr(METAL, name), mx.float32)
    # What does not compile shows nothing about the checks, but where the type is the mistake.
    does_not_compile = isinstance(refused.value, MetalError) and refused.value.kind == "compile"
    assert does_not_compile == mistake.startswith("pointer")
