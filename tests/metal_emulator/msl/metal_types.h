// Vectors, their construction and conversion, type traits, limits.
#pragma once

namespace metal {

template <typename T, int N>
using vec = T __attribute__((ext_vector_type(N)));

#define EMU_VECTORS(t)    \
  typedef vec<t, 2> t##2; \
  typedef vec<t, 3> t##3; \
  typedef vec<t, 4> t##4;
EMU_VECTORS(char)
EMU_VECTORS(uchar)
EMU_VECTORS(short)
EMU_VECTORS(ushort)
EMU_VECTORS(int)
EMU_VECTORS(uint)
EMU_VECTORS(long)
EMU_VECTORS(ulong)
EMU_VECTORS(half)
EMU_VECTORS(bfloat)
EMU_VECTORS(float)
EMU_VECTORS(bool)

// Type traits, those that MSL has.
template <bool B, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  using type = T;
};
template <bool B, class T = void>
using enable_if_t = typename enable_if<B, T>::type;
template <class A, class B>
struct is_same {
  static constexpr bool value = __is_same(A, B);
};
template <class A, class B>
constexpr bool is_same_v = __is_same(A, B);
template <bool B, class T, class F>
struct conditional {
  using type = T;
};
template <class T, class F>
struct conditional<false, T, F> {
  using type = F;
};
template <bool B, class T, class F>
using conditional_t = typename conditional<B, T, F>::type;
template <class T>
constexpr bool is_floating_point_v =
    __is_floating_point(T) || __is_same(T, half) || __is_same(T, bfloat);

template <class T>
struct emu_components {
  static constexpr int count = 1;
};
template <class T, int N>
struct emu_components<vec<T, N>> {
  static constexpr int count = N;
};

template <class T, int N>
struct emu_builder {
  vec<T, N> value;
  int filled = 0;
  template <class A>
  void put(A a) {
    if constexpr (emu_components<A>::count == 1) {
      value[filled++] = T(a);
    } else {
      for (int i = 0; i < emu_components<A>::count; ++i) value[filled++] = T(a[i]);
    }
  }
};

// A scalar is repeated, a vector converted: clang's own cast would reinterpret the bits.
template <class T, int N, class A>
inline vec<T, N> emu_make_vec(A a) {
  static_assert(emu_components<A>::count == 1 || emu_components<A>::count == N,
                "wrong number of components in vector constructor");
  vec<T, N> value;
  for (int i = 0; i < N; ++i) {
    if constexpr (emu_components<A>::count == 1) {
      value[i] = T(a);
    } else {
      value[i] = T(a[i]);
    }
  }
  return value;
}
template <class T, int N, class A, class B, class... C>
inline vec<T, N> emu_make_vec(A a, B b, C... c) {
  static_assert(
      emu_components<A>::count + emu_components<B>::count + (emu_components<C>::count + ... + 0) ==
          N,
      "wrong number of components in vector constructor");
  emu_builder<T, N> builder;
  builder.put(a);
  builder.put(b);
  (builder.put(c), ...);
  return builder.value;
}

template <class To, class From>
inline To as_type(From x) {
  return __builtin_bit_cast(To, x);
}

template <class T>
struct numeric_limits;
#define EMU_INTEGER_LIMITS(t, low, high)        \
  template <>                                   \
  struct numeric_limits<t> {                    \
    static constexpr t min() { return low; }    \
    static constexpr t max() { return high; }   \
    static constexpr t lowest() { return low; } \
  };
EMU_INTEGER_LIMITS(int8_t, -128, 127)
EMU_INTEGER_LIMITS(uchar, 0, 255)
EMU_INTEGER_LIMITS(short, -32768, 32767)
EMU_INTEGER_LIMITS(ushort, 0, 65535)
EMU_INTEGER_LIMITS(int, -2147483647 - 1, 2147483647)
EMU_INTEGER_LIMITS(uint, 0, 4294967295u)
EMU_INTEGER_LIMITS(long, -9223372036854775807l - 1, 9223372036854775807l)
EMU_INTEGER_LIMITS(ulong, 0, 18446744073709551615ul)
#define EMU_FLOAT_LIMITS(t, smallest, largest, step)                 \
  template <>                                                        \
  struct numeric_limits<t> {                                         \
    static constexpr t min() { return t(smallest); }                 \
    static constexpr t max() { return t(largest); }                  \
    static constexpr t lowest() { return t(-largest); }              \
    static constexpr t epsilon() { return t(step); }                 \
    static constexpr t infinity() { return t(__builtin_inff()); }    \
    static constexpr t quiet_NaN() { return t(__builtin_nanf("")); } \
  };
EMU_FLOAT_LIMITS(float, __FLT_MIN__, __FLT_MAX__, __FLT_EPSILON__)
EMU_FLOAT_LIMITS(half, 0x1p-14f, 65504.0f, 0x1p-10f)
EMU_FLOAT_LIMITS(bfloat, 0x1p-126f, 0x1.fep127f, 0x1p-7f)

}  // namespace metal
