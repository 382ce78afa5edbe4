"""Kernels that Metal takes and whose result it promises, with that result."""

from __future__ import annotations

import numpy as np

from .cases import BARRIER, SHAPE, Case, I, L, X, exchanging, reversing
from .dtypes import Array, from_bfloat16, to_bfloat16

_ROWS = X.reshape(-1, 64)
_REVERSED = _ROWS[:, ::-1].reshape(SHAPE)
_TABLE = "constant float table[4] = {1.0f, 2.0f, 3.0f, 4.0f};\n"
_STRUCT = "struct Pair { half a; half b; };\n"
_PAIRS = "const device Pair* p = (const device Pair*)x; "


def _ones(value: float = 1.0, dtype: type = np.float16) -> Array:
    return np.full(SHAPE, value, dtype)


RIGHT: dict[str, tuple[Array, Case]] = {
    "copy": (X, Case(I + "out[i] = x[i];")),
    "copy of vectors": (
        X,
        Case(
            I + "((device vec<T, 4>*)out)[i] = ((const device vec<T, 4>*)x)[i];",
            grid=(X.size // 4, 1, 1),
        ),
    ),
    "barrier": (_REVERSED, Case(reversing(BARRIER))),
    "barrier that fences device memory": (_REVERSED, Case(exchanging("mem_device"))),
    "barrier of a SIMD-group in a threadgroup of one": (
        X.reshape(-1, 32)[:, ::-1].reshape(SHAPE),
        Case(
            reversing("simdgroup_barrier(mem_flags::mem_threadgroup);").replace("63", "31"),
            threadgroup=(32, 1, 1),
        ),
    ),
    "adds to an output with init_value": (X, Case(I + "out[i] += x[i];", init_value=0.0)),
    "atomics with init_value": (
        _ones(dtype=np.float32),
        Case(
            I + "atomic_fetch_add_explicit(&out[i], 1.0f, memory_order_relaxed);",
            dtype=np.float32,
            atomic_outputs=True,
            init_value=0.0,
        ),
    ),
    "counter in threadgroup memory": (
        _ones(64.0),
        Case(
            f"threadgroup atomic<uint> count; {I}{L}if (l == 0) "
            f"atomic_store_explicit(&count, 0u, memory_order_relaxed); {BARRIER} "
            f"atomic_fetch_add_explicit(&count, 1u, memory_order_relaxed); {BARRIER} "
            "out[i] = T(atomic_load_explicit(&count, memory_order_relaxed));"
        ),
    ),
    "simd_sum of half the lanes": (
        np.tile(np.repeat([16.0, 1.0], 16), X.size // 32).astype(np.float16).reshape(SHAPE),
        Case(
            I + "float v = 1; if (thread_index_in_simdgroup < 16) v = simd_sum(v); out[i] = T(v);"
        ),
    ),
    "simd_sum at the edge of a threadgroup": (
        np.concatenate([np.tile(np.repeat([32.0, 16.0], [32, 16]), 21), np.full(16, 16.0)])
        .astype(np.float16)
        .reshape(SHAPE),
        Case(I + "out[i] = T(simd_sum(1.0f));", threadgroup=(48, 1, 1)),
    ),
    "shuffles": (
        _ROWS.reshape(-1, 16, 2)[:, :, ::-1].reshape(SHAPE),
        Case(I + "out[i] = simd_shuffle_xor(x[i], 1);"),
    ),
    "literal without f": (X * np.float16(2), Case(I + "out[i] = T(float(x[i]) * 2.0);")),
    "float into half": (X, Case(I + "float f = x[i]; out[i] = f;")),
    "vec<> converts": (
        X.astype(np.int32).astype(np.float16),
        Case(
            I + "float4 f = float4(float(x[i])); vec<int, 4> k = vec<int, 4>(f); out[i] = T(k.x);"
        ),
    ),
    "swizzles and vectors of bool": (
        X,
        Case(
            I + "float4 v = float4(0.0f, 0.0f, float(x[i]), 1.0f); v.xy = v.zw; "
            "bool4 b = v < 100.0f; out[i] = T(all(b) ? v.x : v.y);"
        ),
    ),
    "constant table": (
        np.tile([1, 2, 3, 4], X.size // 4).astype(np.float16).reshape(SHAPE),
        Case(I + "out[i] = T(table[i % 4]);", _TABLE),
    ),
    "lambda": (X, Case(I + "auto f = [&](float v) { return v; }; out[i] = T(f(x[i]));")),
    "function that calls another": (
        X + np.float16(1) + np.float16(1),
        Case(
            I + "out[i] = two(x[i]);",
            "template <class U> U one(U v) { return v + U(1); }\n"
            "template <class U> U two(U v) { return one(one(v)); }\n",
        ),
    ),
    "one template calls itself with another type": (
        X,
        Case(
            I + "out[i] = T(depth<2>::get(x[i]));",
            "template <int N> struct depth { static float get(float v) "
            "{ return depth<N - 1>::get(v); } };\n"
            "template <> struct depth<0> { static float get(float v) { return v; } };\n",
        ),
    ),
    "struct out of device memory": (
        np.repeat(X.reshape(-1)[1::2], 2).reshape(SHAPE),
        Case(I + _PAIRS + "const Pair q = p[i / 2]; out[i] = q.b;", _STRUCT),
    ),
    "struct from braces, and out of threadgroup memory": (
        _ones(3.0),
        Case(
            f"threadgroup float s[2]; {I}{L}if (l < 2) s[l] = l + 1; {BARRIER} "
            "Twin t = ((threadgroup Twin*)s)[0]; Twin u = {t.b, t.a}; out[i] = T(u.a + t.a);",
            "struct Twin { float a, b; };\n",
        ),
    ),
    "three axes, uneven threadgroups": (
        X,
        Case(
            "uint3 p = thread_position_in_grid, g = threads_per_grid; "
            "uint i = (p.z * g.y + p.y) * g.x + p.x; out[i] = x[i];",
            grid=(16, 8, 8),
            threadgroup=(5, 3, 3),
        ),
    ),
    "shapes and strides": (
        X,
        Case(I + "out[i] = x[elem_to_loc(i, x_shape, x_strides, x_ndim)];"),
    ),
    "input of two elements": (
        _ones(7.0),
        Case(
            I + "const constant int* p = n; out[i] = T(p[0] + p[1]);", n=np.array([3, 4], np.int32)
        ),
    ),
    "bfloat": (
        from_bfloat16(to_bfloat16(from_bfloat16(to_bfloat16(X)) * 1.5)),
        Case(
            I + "out[i] = float(bfloat(float(x[i])) * bfloat(1.5f));",
            dtype=np.float32,
        ),
    ),
}
