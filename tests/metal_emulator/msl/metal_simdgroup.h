// Barriers, SIMD-group functions, threadgroup memory: what lets threads meet.
#pragma once

namespace metal {

enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(uint(a) | uint(b)); }
inline void threadgroup_barrier(mem_flags flags, int site = EMU_SITE) {
  emu_barrier(uint(flags), site);
}
inline void simdgroup_barrier(mem_flags flags, int site = EMU_SITE) {
  emu_simd_barrier(uint(flags), site);
}

// The active lanes meet once and hand over their values; then each lane computes for itself.
struct emu_lanes {
  const unsigned char* values;  // 16 bytes a lane
  uint active, lane;
};
template <class T>
EMU_UNCHECKED emu_lanes emu_meet(T value, int operation, int site) {
  emu_lanes lanes;
  lanes.values = emu_simd_gather(&value, sizeof(T), operation, site, &lanes.active, &lanes.lane);
  return lanes;
}
template <class T>
EMU_UNCHECKED T emu_lane_value(emu_lanes lanes, int lane, T otherwise) {
  if (lane < 0 || lane > 31 || !(lanes.active >> lane & 1)) return otherwise;
  T value;
  __builtin_memcpy(&value, lanes.values + 16 * lane, sizeof(T));
  return value;
}
// What an inactive lane holds is undefined in MSL: all bits set, a NaN, is easily seen.
template <class T>
EMU_UNCHECKED T emu_undefined() {
  T value;
  __builtin_memset(&value, 0xFF, sizeof(T));
  return value;
}

// An ascending butterfly, the order in which Apple GPUs are reported to reduce.
#define EMU_REDUCE(name, combine, id)                                                           \
  template <class T>                                                                            \
  EMU_UNCHECKED T name(T value, int site = EMU_SITE) {                                          \
    emu_lanes lanes = emu_meet(value, id, site);                                                \
    T partial[32];                                                                              \
    bool present[32];                                                                           \
    for (int i = 0; i < 32; ++i) {                                                              \
      present[i] = lanes.active >> i & 1;                                                       \
      partial[i] = emu_lane_value(lanes, i, value);                                             \
    }                                                                                           \
    for (int width = 1; width < 32; width <<= 1) {                                              \
      for (int i = 0; i < 32; i += 2 * width) {                                                 \
        if (!present[i + width]) continue;                                                      \
        partial[i] = present[i] ? combine(partial[i], partial[i + width]) : partial[i + width]; \
        present[i] = true;                                                                      \
      }                                                                                         \
    }                                                                                           \
    return partial[0];                                                                          \
  }
template <class T>
inline T emu_add(T a, T b) {
  return a + b;
}
template <class T>
inline T emu_multiply(T a, T b) {
  return a * b;
}
template <class T>
inline T emu_and(T a, T b) {
  return a & b;
}
template <class T>
inline T emu_or(T a, T b) {
  return a | b;
}
template <class T>
inline T emu_xor(T a, T b) {
  return a ^ b;
}
EMU_REDUCE(simd_sum, emu_add, 1)
EMU_REDUCE(simd_product, emu_multiply, 2)
EMU_REDUCE(simd_max, max, 3)
EMU_REDUCE(simd_min, min, 4)
EMU_REDUCE(simd_and, emu_and, 5)
EMU_REDUCE(simd_or, emu_or, 6)
EMU_REDUCE(simd_xor, emu_xor, 7)

#define EMU_SHUFFLE(name, id, source)                                \
  template <class T>                                                 \
  EMU_UNCHECKED T name(T value, ushort delta, int site = EMU_SITE) { \
    emu_lanes lanes = emu_meet(value, id, site);                     \
    int lane = lanes.lane, by = delta;                               \
    (void)lane;                                                      \
    return emu_lane_value<T>(lanes, source, emu_undefined<T>());     \
  }
EMU_SHUFFLE(simd_broadcast, 8, by)
EMU_SHUFFLE(simd_shuffle, 9, by)
EMU_SHUFFLE(simd_shuffle_xor, 10, lane ^ by)
EMU_SHUFFLE(simd_shuffle_down, 11, lane + by > 31 ? lane : lane + by)
EMU_SHUFFLE(simd_shuffle_up, 12, lane - by < 0 ? lane : lane - by)

template <class T>
EMU_UNCHECKED T simd_broadcast_first(T value, int site = EMU_SITE) {
  emu_lanes lanes = emu_meet(value, 13, site);
  return emu_lane_value(lanes, __builtin_ctz(lanes.active), value);
}
template <class T>
EMU_UNCHECKED T emu_sum_below(emu_lanes lanes, int end) {
  T sum = 0;
  for (int i = 0; i < end; ++i) sum = sum + emu_lane_value(lanes, i, T(0));
  return sum;
}
template <class T>
EMU_UNCHECKED T simd_prefix_inclusive_sum(T value, int site = EMU_SITE) {
  emu_lanes lanes = emu_meet(value, 14, site);
  return emu_sum_below<T>(lanes, lanes.lane + 1);
}
template <class T>
EMU_UNCHECKED T simd_prefix_exclusive_sum(T value, int site = EMU_SITE) {
  emu_lanes lanes = emu_meet(value, 15, site);
  return emu_sum_below<T>(lanes, lanes.lane);
}
inline bool simd_any(bool b, int site = EMU_SITE) { return simd_or(uint(b), site); }
inline bool simd_all(bool b, int site = EMU_SITE) { return simd_and(uint(b), site); }

template <class T>
inline threadgroup T* emu_threadgroup_variable(int id, int line) {
  return (threadgroup T*)(ulong)emu_threadgroup_memory(sizeof(T), alignof(T) < 16 ? 16 : alignof(T),
                                                       id, line);
}

}  // namespace metal
