// Atomics: relaxed ones only, as in MSL. One fiber runs at a time, so plain code is atomic.
#pragma once

namespace metal {

enum memory_order { memory_order_relaxed };
template <class T>
struct atomic {
  T value;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;

#define EMU_FETCH(space, name, expression)                                                   \
  template <class T>                                                                         \
  EMU_UNCHECKED T atomic_##name##_explicit(volatile space atomic<T>* p, T x, memory_order) { \
    emu_atomic((const void*)(ulong)p, sizeof(T));                                            \
    T old = p->value;                                                                        \
    p->value = expression;                                                                   \
    return old;                                                                              \
  }
#define EMU_ATOMICS(space)                                                                   \
  template <class T>                                                                         \
  EMU_UNCHECKED T atomic_load_explicit(const volatile space atomic<T>* p, memory_order) {    \
    emu_atomic((const void*)(ulong)p, sizeof(T));                                            \
    return p->value;                                                                         \
  }                                                                                          \
  template <class T>                                                                         \
  EMU_UNCHECKED void atomic_store_explicit(volatile space atomic<T>* p, T x, memory_order) { \
    emu_atomic_store((const void*)(ulong)p, sizeof(T));                                      \
    p->value = x;                                                                            \
  }                                                                                          \
  EMU_FETCH(space, exchange, x)                                                              \
  EMU_FETCH(space, fetch_add, old + x)                                                       \
  EMU_FETCH(space, fetch_sub, old - x)                                                       \
  EMU_FETCH(space, fetch_max, max(old, x))                                                   \
  EMU_FETCH(space, fetch_min, min(old, x))                                                   \
  EMU_FETCH(space, fetch_and, old& x)                                                        \
  EMU_FETCH(space, fetch_or, old | x)
EMU_ATOMICS(device)
EMU_ATOMICS(threadgroup)

}  // namespace metal
