// Math functions. Half and bfloat compute in float and round once, as Apple GPUs are seen to do.
#pragma once

namespace metal {

// clang has no builtin for these.
inline float emu_rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
inline float emu_exp10(float x) { return __builtin_powf(10.0f, x); }
inline float emu_fract(float x) { return x - __builtin_floorf(x); }
inline float emu_sinpi(float x) { return __builtin_sinf(3.14159265358979f * x); }
inline float emu_cospi(float x) { return __builtin_cosf(3.14159265358979f * x); }
inline float emu_divide(float x, float y) { return x / y; }

#define EMU_UNARY(f, builtin)                                            \
  inline float f(float x) { return builtin(x); }                         \
  inline half f(half x) { return half(builtin(float(x))); }              \
  inline bfloat f(bfloat x) { return bfloat(builtin(float(x))); }        \
  template <class T, int N>                                              \
  inline enable_if_t<is_floating_point_v<T>, vec<T, N>> f(vec<T, N> x) { \
    for (int i = 0; i < N; ++i) x[i] = T(builtin(float(x[i])));          \
    return x;                                                            \
  }
#define EMU_BINARY(f, builtin)                                                        \
  inline float f(float x, float y) { return builtin(x, y); }                          \
  inline half f(half x, half y) { return half(builtin(float(x), float(y))); }         \
  inline bfloat f(bfloat x, bfloat y) { return bfloat(builtin(float(x), float(y))); } \
  template <class T, int N>                                                           \
  inline enable_if_t<is_floating_point_v<T>, vec<T, N>> f(vec<T, N> x, vec<T, N> y) { \
    for (int i = 0; i < N; ++i) x[i] = T(builtin(float(x[i]), float(y[i])));          \
    return x;                                                                         \
  }
#define EMU_UNARY_FLOAT(f, builtin)                   \
  inline float f(float x) { return builtin(x); }      \
  template <int N>                                    \
  inline vec<float, N> f(vec<float, N> x) {           \
    for (int i = 0; i < N; ++i) x[i] = builtin(x[i]); \
    return x;                                         \
  }
#define EMU_BINARY_FLOAT(f, builtin) \
  inline float f(float x, float y) { return builtin(x, y); }

#define EMU_MATH(U, B)             \
  U(exp, __builtin_expf)           \
  U(exp2, __builtin_exp2f)         \
  U(exp10, emu_exp10)              \
  U(log, __builtin_logf)           \
  U(log2, __builtin_log2f)         \
  U(log10, __builtin_log10f)       \
  U(sin, __builtin_sinf)           \
  U(cos, __builtin_cosf)           \
  U(tan, __builtin_tanf)           \
  U(asin, __builtin_asinf)         \
  U(acos, __builtin_acosf)         \
  U(atan, __builtin_atanf)         \
  U(sinh, __builtin_sinhf)         \
  U(cosh, __builtin_coshf)         \
  U(tanh, __builtin_tanhf)         \
  U(asinh, __builtin_asinhf)       \
  U(acosh, __builtin_acoshf)       \
  U(atanh, __builtin_atanhf)       \
  U(sinpi, emu_sinpi)              \
  U(cospi, emu_cospi)              \
  U(sqrt, __builtin_sqrtf)         \
  U(rsqrt, emu_rsqrt)              \
  U(rint, __builtin_rintf)         \
  U(round, __builtin_roundf)       \
  U(ceil, __builtin_ceilf)         \
  U(floor, __builtin_floorf)       \
  U(trunc, __builtin_truncf)       \
  U(fract, emu_fract)              \
  U(fabs, __builtin_fabsf)         \
  B(atan2, __builtin_atan2f)       \
  B(pow, __builtin_powf)           \
  B(powr, __builtin_powf)          \
  B(fmod, __builtin_fmodf)         \
  B(divide, emu_divide)            \
  B(fmin, __builtin_fminf)         \
  B(fmax, __builtin_fmaxf)         \
  B(copysign, __builtin_copysignf) \
  B(fdim, __builtin_fdimf)
EMU_MATH(EMU_UNARY, EMU_BINARY)
namespace precise {
EMU_MATH(EMU_UNARY_FLOAT, EMU_BINARY_FLOAT)
}
// No less exact here than precise: how far Apple's fast functions stray cannot be shown.
namespace fast {
EMU_MATH(EMU_UNARY_FLOAT, EMU_BINARY_FLOAT)
}

inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline half fma(half a, half b, half c) { return half(__builtin_fmaf(a, b, c)); }
template <int N>
inline vec<float, N> fma(vec<float, N> a, vec<float, N> b, vec<float, N> c) {
  for (int i = 0; i < N; ++i) a[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return a;
}

inline bool isnan(float x) { return x != x; }
inline bool isinf(float x) { return __builtin_fabsf(x) == __builtin_inff(); }
inline bool isfinite(float x) { return __builtin_fabsf(x) < __builtin_inff(); }

#define EMU_ORDERED(t)                                                  \
  inline t min(t a, t b) { return b < a ? b : a; }                      \
  inline t max(t a, t b) { return a < b ? b : a; }                      \
  inline t clamp(t x, t low, t high) { return min(max(x, low), high); } \
  inline t select(t a, t b, bool c) { return c ? b : a; }
EMU_ORDERED(char)
EMU_ORDERED(int8_t)
EMU_ORDERED(uchar)
EMU_ORDERED(short)
EMU_ORDERED(ushort)
EMU_ORDERED(int)
EMU_ORDERED(uint)
EMU_ORDERED(long)
EMU_ORDERED(ulong)
EMU_ORDERED(half)
EMU_ORDERED(bfloat)
EMU_ORDERED(float)
template <class T, int N>
inline vec<T, N> min(vec<T, N> a, vec<T, N> b) {
  for (int i = 0; i < N; ++i) a[i] = min(a[i], b[i]);
  return a;
}
template <class T, int N>
inline vec<T, N> max(vec<T, N> a, vec<T, N> b) {
  for (int i = 0; i < N; ++i) a[i] = max(a[i], b[i]);
  return a;
}
template <class T, int N>
inline vec<T, N> clamp(vec<T, N> x, T low, T high) {
  for (int i = 0; i < N; ++i) x[i] = clamp(x[i], low, high);
  return x;
}
template <class T, int N>
inline vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<bool, N> c) {
  for (int i = 0; i < N; ++i) a[i] = c[i] ? b[i] : a[i];
  return a;
}
#define EMU_ABS(t) \
  inline t abs(t x) { return x < 0 ? t(-x) : x; }
EMU_ABS(int)
EMU_ABS(short)
EMU_ABS(long)
EMU_ABS(float)
EMU_ABS(half)
EMU_ABS(bfloat)
template <class T, int N>
inline vec<T, N> abs(vec<T, N> x) {
  for (int i = 0; i < N; ++i) x[i] = abs(x[i]);
  return x;
}

inline float mix(float a, float b, float t) { return a + (b - a) * t; }
inline float saturate(float x) { return clamp(x, 0.0f, 1.0f); }
inline float sign(float x) { return x > 0 ? 1.0f : x < 0 ? -1.0f : x; }
inline uint popcount(uint x) { return __builtin_popcount(x); }
inline uint clz(uint x) { return x ? __builtin_clz(x) : 32; }
inline uint ctz(uint x) { return x ? __builtin_ctz(x) : 32; }
inline uint mulhi(uint a, uint b) { return (ulong(a) * b) >> 32; }
template <class T, int N>
inline enable_if_t<is_floating_point_v<T>, T> dot(vec<T, N> a, vec<T, N> b) {
  T sum = a[0] * b[0];
  for (int i = 1; i < N; ++i) sum += a[i] * b[i];
  return sum;
}
template <class T, int N>
inline T length(vec<T, N> a) {
  return sqrt(dot(a, a));
}
template <int N>
inline bool any(vec<bool, N> a) {
  for (int i = 0; i < N; ++i) {
    if (a[i]) return true;
  }
  return false;
}
template <int N>
inline bool all(vec<bool, N> a) {
  for (int i = 0; i < N; ++i) {
    if (!a[i]) return false;
  }
  return true;
}

}  // namespace metal
