"""Kernels that are wrong in one way each, with the kind of error that has to say so.

A missing barrier may show as a read of what was never written: which thread comes first decides.
"""

from __future__ import annotations

import numpy as np

from .cases import BARRIER, Case, I, L, X, exchanging, reversing
from .dtypes import BFLOAT16, to_bfloat16
from .errors import Kind

_F4 = "float4 f = float4(float(x[i])); "
_PAIR = np.array([1, 2], np.int32)
_IN_BFLOAT = (("T", BFLOAT16),)
_TABLE = "constant float table[4] = {1.0f, 2.0f, 3.0f, 4.0f};\n"
_HALVES = "((device vec<T, 4>*)out)[i] = ((const device vec<T, 4>*)x)[i];"

WRONG: dict[str, tuple[Kind, Case]] = {
    # Bounds
    "writes one past the end": ("out-of-bounds", Case(I + "out[i + 1] = x[i];")),
    "reads one before the start": ("out-of-bounds", Case(I + "out[i] = x[i - 1];")),
    "grid larger than the array": (
        "out-of-bounds",
        Case(I + "out[i] = x[i];", grid=(X.size + 64, 1, 1)),
    ),
    "vector past the end": ("out-of-bounds", Case(I + _HALVES, grid=(X.size // 4 + 1, 1, 1))),
    "masks what it has read": (
        "out-of-bounds",
        Case(I + "T v = x[i + 1]; out[i] = v * T(i + 1 < 1024);"),
    ),
    "threadgroup array, by index": (
        "undefined-behaviour",
        Case(f"threadgroup float s[64]; {I}{L}s[l + 1] = 1; {BARRIER} out[i] = T(s[l]);"),
    ),
    "threadgroup array, by pointer": (
        "out-of-bounds",
        Case(
            f"threadgroup float s[64]; {I}{L}threadgroup float* p = s; p[l + 1] = 1; {BARRIER} "
            "out[i] = T(s[0]);"
        ),
    ),
    "local array": (
        "undefined-behaviour",
        Case(I + "float v[4]; for (int j = 0; j <= 4; ++j) v[j] = x[i]; out[i] = T(v[3]);"),
    ),
    "constant table": (
        "undefined-behaviour",
        Case(I + "out[i] = T(table[i % 5]);", _TABLE),
    ),
    "offset of one row": (
        "out-of-bounds",
        Case(I + "out[i] = x[i + x_shape[0]];"),
    ),
    # What is written and what is not
    "every third element is not written": (
        "unwritten-output",
        Case(I + "if (i % 3) out[i] = x[i];"),
    ),
    "grid smaller than the array": (
        "unwritten-output",
        Case(I + "out[i] = x[i];", grid=(X.size - 1, 1, 1)),
    ),
    "writes an input": ("write-to-input", Case(I + "((device T*)x)[i] = 0; out[i] = x[i];")),
    "assigns to an input": ("compile", Case(I + "x[i] = 0; out[i] = x[i];")),
    "adds to an output that holds nothing": (
        "uninitialised-read",
        Case(I + "out[i] += x[i];"),
    ),
    "reads threadgroup memory that holds nothing": (
        "uninitialised-read",
        Case(f"threadgroup float s[64]; {I}{L}out[i] = T(s[l]);"),
    ),
    "atomic add to an output that holds nothing": (
        "uninitialised-read",
        Case(
            I + "atomic_fetch_add_explicit(&out[i], 1.0f, memory_order_relaxed);",
            dtype=np.float32,
            atomic_outputs=True,
        ),
    ),
    "local read before it is written": (
        "compile",
        Case(I + "float a; if (i > 5000) a = 1; out[i] = T(a);"),
    ),
    # Races and barriers
    "no barrier": ("uninitialised-read", Case(reversing(""))),
    "barrier that fences device memory only": (
        "data-race",
        Case(reversing("threadgroup_barrier(mem_flags::mem_device);")),
    ),
    "barrier that fences threadgroup memory only": (
        "data-race",
        Case(exchanging("mem_threadgroup")),
    ),
    "barrier of a SIMD-group only": (
        "data-race",
        Case(reversing("simdgroup_barrier(mem_flags::mem_threadgroup);")),
    ),
    "no barrier before shared memory is used again": (
        "data-race",
        Case(
            f"threadgroup float s[64]; {I}{L}float a = 0; for (int k = 0; k < 2; ++k) {{ "
            f"s[l] = float(x[i]) + k; {BARRIER} a += s[63 - l]; }} out[i] = T(a);"
        ),
    ),
    "two threads write one element": (
        "data-race",
        Case(I + "out[i / 2] = x[i]; out[512 + i / 2] = x[i];"),
    ),
    "two threadgroups write one element": (
        "data-race",
        Case(I + "out[i] = x[i]; if (i >= 64) out[i - 64] = x[i];"),
    ),
    "result of a race of atomics": (
        "schedule-dependent",
        Case(
            f"threadgroup atomic<uint> next; {I}{L}if (l == 0) "
            f"atomic_store_explicit(&next, 0u, memory_order_relaxed); {BARRIER} "
            "out[i] = T(atomic_fetch_add_explicit(&next, 1u, memory_order_relaxed));"
        ),
    ),
    "barrier that half of the threads reach": (
        "barrier-divergence",
        Case(f"threadgroup float s[64]; {I}{L}s[l] = 1; if (l < 32) {BARRIER} out[i] = T(s[l]);"),
    ),
    "return before a barrier": (
        "barrier-divergence",
        Case(f"{I}{L}out[i] = T(l); if (l == 5) return; {BARRIER}"),
    ),
    "two barriers in two branches of one line": (
        "barrier-divergence",
        Case(f"{I}{L}if (l < 32) {{ {BARRIER} }} else {{ {BARRIER} }} out[i] = x[i];"),
    ),
    "simd_sum in two branches": (
        "simdgroup-divergence",
        Case(
            f"{I}{L}float v; if (l % 32 < 16) v = simd_sum(1.0f); else v = simd_sum(1.0f); "
            "out[i] = T(v);"
        ),
    ),
    # Address spaces
    "pointer without an address space": ("lint", Case(I + "const T* p = x; out[i] = p[i];")),
    "parameter without an address space": (
        "lint",
        Case(
            I + "out[i] = get(x, i);",
            "template <class U> U get(const U* p, uint i) { return p[i]; }\n",
        ),
    ),
    "device pointer for a threadgroup parameter": (
        "compile",
        Case(
            I + "out[i] = get(x, i);",
            "template <class U> U get(const threadgroup U* p, uint i) { return p[i]; }\n",
        ),
    ),
    "device pointer to an input of two elements": (
        "compile",
        Case(I + "const device int* p = n; out[i] = T(p[0]);", n=_PAIR),
    ),
    "scalar input with an index": (
        "compile",
        Case(I + "out[i] = T(n[0]);", n=np.array(1, np.int32)),
    ),
    "cast from threadgroup to device": (
        "lint",
        Case(
            f"threadgroup float s[64]; {I}{L}s[l] = 1; device float* p = (device float*)s; "
            "out[i] = T(p[l]);"
        ),
    ),
    "cast from device to thread": ("lint", Case(I + "thread T* p = (thread T*)x; out[i] = p[i];")),
    "thread reference to a device value": (
        "lint",
        Case(
            I + "out[i] = x[i]; bump(out[i]);",
            "template <class U> void bump(thread U& v) { v += 1; }\n",
        ),
    ),
    "variable outside of functions": (
        "lint",
        Case(I + "out[i] = T(table[i % 4]);", "constexpr float table[4] = {1, 2, 3, 4};\n"),
    ),
    "static variable": (
        "lint",
        Case(I + "static const float half_of = 0.5f; out[i] = T(half_of);"),
    ),
    "threadgroup variable with an initialiser": (
        "lint",
        Case("threadgroup float s = 1.0f; out[thread_position_in_grid.x] = T(s);"),
    ),
    # Language
    "syntax": ("compile", Case(I + "out[i] = x[i]")),
    "function that Metal lacks": ("compile", Case(I + "out[i] = metal::softplus(x[i]);")),
    "function of the C library": ("compile", Case(I + "out[i] = expf(x[i]);")),
    "attribute misspelt": ("compile", Case("uint i = thread_positions_in_grid.x; out[i] = x[i];")),
    "double": ("compile", Case(I + "double d = x[i]; out[i] = T(d);")),
    "recursion": (
        "lint",
        Case(
            I + "out[i] = T(factorial(3));",
            "inline int factorial(int n) { return n < 2 ? 1 : n * factorial(n - 1); }\n",
        ),
    ),
    "recursion by way of another": (
        "lint",
        Case(
            I + "out[i] = T(even(4));",
            "inline bool odd(int n);\n"
            "inline bool even(int n) { return n == 0 || odd(n - 1); }\n"
            "inline bool odd(int n) { return n != 0 && even(n - 1); }\n",
        ),
    ),
    "recursion of a template": (
        "lint",
        Case(
            I + "out[i] = T(factorial(3.0f));",
            "template <class U> U factorial(U n) { return n < 2 ? 1 : n * factorial(n - 1); }\n",
        ),
    ),
    "cast between vectors": ("lint", Case(I + _F4 + "int4 k = (int4)f; out[i] = T(k.x);")),
    "static_cast between vectors": (
        "compile",
        Case(I + _F4 + "int4 k = static_cast<int4>(f); out[i] = T(k.x);"),
    ),
    "float4 into half4": ("compile", Case(I + _F4 + "half4 h = f; out[i] = h.x;")),
    "vector of too few components": (
        "compile",
        Case(I + "out[i] = T(float4(float2(1), 2.0f).x);"),
    ),
    "float into bfloat": (
        "lint",
        Case(
            I + "float f = x[i]; out[i] = f;",
            x=to_bfloat16(X),
            dtype=BFLOAT16,
            template=_IN_BFLOAT,
        ),
    ),
    "non-ASCII comment": ("lint", Case(I + "out[i] = x[i]; // \u00d7")),
    # Limits and undefined behaviour
    "threadgroup memory beyond 32 KB": (
        "threadgroup-memory",
        Case(f"threadgroup float s[9000]; {I}{L}s[l] = 1; out[i] = 1;"),
    ),
    "2048 threads in a threadgroup": (
        "lint",
        Case(I + "out[i] = x[i];", threadgroup=(2048, 1, 1)),
    ),
    "empty grid": ("lint", Case(I + "out[i] = x[i];", grid=(0, 1, 1))),
    "vector at a misaligned input": (
        "undefined-behaviour",
        Case(I + _HALVES, grid=(X.size // 4, 1, 1), misalign=1),
    ),
    "shift by more than the width": (
        "undefined-behaviour",
        Case(I + "out[i] = T(1 << (int(i) + 32));"),
    ),
    "division by zero": (
        "undefined-behaviour",
        Case(I + "out[i] = T(int(i) / n[0]);", n=np.zeros(2, np.int32)),
    ),
    "signed overflow": (
        "undefined-behaviour",
        Case(I + "out[i] = T(n[0] + int(i));", n=np.full(2, 2**31 - 1, np.int32)),
    ),
    "more stack than there is": (
        "crash",
        Case(
            I + "float v[60000]; for (uint k = 0; k < 60000; ++k) v[(k * 7 + i) % 60000] = k; "
            "out[i] = T(v[i]);"
        ),
    ),
    "loop without end": (
        "timeout",
        Case(I + "while (x[0] == x[0]) {} out[i] = x[i];", timeout=0.2),
    ),
    "attribute that is not emulated": (
        "unsupported",
        Case(I + "out[i] = T(thread_index_in_quadgroup);"),
    ),
    "SIMD-group function of a large value": (
        "unsupported",
        Case(I + "vec<long, 3> v = vec<long, 3>(1l); out[i] = T(simd_broadcast(v, 0).x);"),
    ),
}
