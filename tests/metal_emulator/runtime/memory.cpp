// Bounds, initialisation and races: each access is held against the shadow of its bytes.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "runtime.h"

extern "C" __attribute__((visibility("hidden"))) char __ehdr_start, _end;

Region regions[64];
int region_count;
long access_count, switch_count, partial_simd_count;
uint64_t threadgroup_bytes;

static int last_region;
static uint8_t* threadgroup_memory;
static Region* variables[kMaxVariables];   // those made in any threadgroup so far
static bool variable_live[kMaxVariables];  // those made in this one

void refuse(const char* kind, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  printf("ERROR %s\n", kind);
  vprintf(format, arguments);
  va_end(arguments);
  if (current >= 0) {
    const uint32_t* slots = thread_slots(current);
    const uint32_t* grid = slots + kPositionInGrid;
    const uint32_t* group = slots + kThreadgroupPosition;
    printf(" [thread_position_in_grid=(%u,%u,%u) threadgroup=(%u,%u,%u) thread_index=%d]", grid[0],
           grid[1], grid[2], group[0], group[1], group[2], current);
  }
  printf("\n");
  fflush(stdout);
  _Exit(3);
}

Region* add_region(const char* name, uint8_t* data, uint64_t size, RegionKind kind) {
  if (region_count == 64) refuse("unsupported", "more than 64 buffers and threadgroup variables");
  Region* region = &regions[region_count++];
  snprintf(region->name, sizeof region->name, "%s", name);
  region->data = data;
  region->size = size;
  region->kind = kind;
  if (kind != kInput) region->shadow = (Shadow*)calloc(size ? size : 1, sizeof(Shadow));
  return region;
}

static Region* find_region(uintptr_t address) {
  Region* last = &regions[last_region];
  if (address - (uintptr_t)last->data < last->size) return last;
  for (int i = 0; i < region_count; ++i) {
    if (address - (uintptr_t)regions[i].data < regions[i].size) {
      last_region = i;
      return &regions[i];
    }
  }
  return nullptr;
}

// An address inside the library, as the line table has it.
static unsigned long in_library(void* pc) {
  return (unsigned long)((uintptr_t)pc - (uintptr_t)&__ehdr_start);
}

[[noreturn]] static void refuse_bounds(uintptr_t address, unsigned bytes, const char* what,
                                       void* pc) {
  const Region* nearest = nullptr;
  int64_t offset = 0, least = INT64_MAX;
  for (int i = 0; i < region_count; ++i) {
    int64_t from = (int64_t)(address - (uintptr_t)regions[i].data);
    int64_t past = from - (int64_t)regions[i].size;
    int64_t distance = from < 0 ? -from : past < 0 ? 0 : past;
    if (distance < least) {
      least = distance;
      offset = from;
      nearest = &regions[i];
    }
  }
  refuse("out-of-bounds", "%s of %u bytes at byte offset %lld of '%s' (%llu bytes) pc=0x%lx", what,
         bytes, (long long)offset, nearest ? nearest->name : "?",
         nearest ? (unsigned long long)nearest->size : 0ull, in_library(pc));
}

static Epochs now_of_simd;

static bool in_order(bool local, uint32_t group, uint32_t epoch, uint32_t simd_epoch, int thread) {
  if (!local && group != current_group) return false;
  if (thread == current) return true;
  if (epoch < (local ? group_epochs.threadgroup : group_epochs.device)) return true;
  return thread / kLanes == current / kLanes &&
         simd_epoch < (local ? now_of_simd.threadgroup : now_of_simd.device);
}

static void check_byte(const Region& region, uint64_t offset, bool write, void* pc) {
  bool local = region.kind == kThreadgroupVariable;
  uint32_t epoch = local ? group_epochs.threadgroup : group_epochs.device;
  uint32_t simd_epoch = local ? now_of_simd.threadgroup : now_of_simd.device;
  Shadow& s = region.shadow[offset];
  if (s.written == kPlain &&
      !in_order(local, s.write_group, s.write_epoch, s.write_simd_epoch, s.write_thread)) {
    refuse("data-race",
           "%s of '%s' byte offset %llu races with a write by thread_index %u%s, no barrier in "
           "between pc=0x%lx",
           write ? "write" : "read", region.name, (unsigned long long)offset, s.write_thread,
           s.write_group != current_group && !local ? " of another threadgroup" : "",
           in_library(pc));
  }
  bool read_in_order =
      !s.read || in_order(local, s.read_group, s.read_epoch, s.read_simd_epoch, s.read_thread);
  if (write) {
    if (s.many_readers) {
      read_in_order = s.read_epoch < epoch && (local || s.read_group == current_group);
    }
    if (s.readers_of_many_groups || !read_in_order) {
      refuse("data-race",
             "write of '%s' byte offset %llu races with a read by thread_index %u, no barrier in "
             "between pc=0x%lx",
             region.name, (unsigned long long)offset, s.read_thread, in_library(pc));
    }
    s.written = kPlain;
    s.write_group = current_group;
    s.write_epoch = epoch;
    s.write_simd_epoch = simd_epoch;
    s.write_thread = current;
    s.read = s.many_readers = s.readers_of_many_groups = false;
    return;
  }
  if (s.written == kNever && region.kind != kInitialisedOutput) {
    refuse("uninitialised-read",
           "read of '%s' byte offset %llu before any write (never written, or a barrier is "
           "missing) pc=0x%lx",
           region.name, (unsigned long long)offset, in_library(pc));
  }
  if (!read_in_order) {
    s.many_readers = true;
    if (!local && s.read_group != current_group) s.readers_of_many_groups = true;
    if (s.read_epoch < epoch) s.read_epoch = epoch;
  } else {
    s.many_readers = false;
    s.read_thread = current;
    s.read_group = current_group;
    s.read_epoch = epoch;
    s.read_simd_epoch = simd_epoch;
  }
  s.read = true;
}

static void check(const void* pointer, unsigned bytes, bool write, void* pc) {
  if (current < 0) return;
  ++access_count;
  uintptr_t address = (uintptr_t)pointer;
  Region* region = find_region(address);
  if (!region || address + bytes > (uintptr_t)region->data + region->size) {
    if (on_own_stack(address)) return;
    bool in_image = address >= (uintptr_t)&__ehdr_start && address + bytes <= (uintptr_t)&_end;
    if (!region && !write && in_image) return;  // a constant table
    refuse_bounds(address, bytes, write ? "write" : "read", pc);
  }
  uint64_t offset = address - (uintptr_t)region->data;
  if (region->kind == kInput) {
    if (!write) return;
    refuse("write-to-input", "write at byte offset %llu of input '%s' pc=0x%lx",
           (unsigned long long)offset, region->name, in_library(pc));
  }
  now_of_simd = simd_epochs();
  // The bytes of one value nearly always share one history: it is checked once.
  Shadow* shadow = region->shadow + offset;
  Shadow before = shadow[0];
  check_byte(*region, offset, write, pc);
  for (unsigned i = 1; i < bytes; ++i) {
    if (memcmp(&shadow[i], &before, sizeof before) == 0) {
      shadow[i] = shadow[0];
    } else {
      check_byte(*region, offset + i, write, pc);
    }
  }
}

static void check_atomic(const void* pointer, unsigned bytes, bool reads, void* pc) {
  Region* region = find_region((uintptr_t)pointer);
  if (!region || (uintptr_t)pointer + bytes > (uintptr_t)region->data + region->size) {
    refuse_bounds((uintptr_t)pointer, bytes, "atomic access", pc);
  }
  if (region->kind == kInput) refuse("write-to-input", "atomic on input '%s'", region->name);
  for (unsigned i = 0; i < bytes; ++i) {
    Shadow& s = region->shadow[(uintptr_t)pointer - (uintptr_t)region->data + i];
    if (reads && s.written == kNever && region->kind != kInitialisedOutput) {
      refuse("uninitialised-read", "atomic on '%s', which has no init_value and no store before",
             region->name);
    }
    s.written = kAtomic;
  }
}

void reset_threadgroup_memory() {
  threadgroup_bytes = 0;
  memset(variable_live, 0, sizeof variable_live);
}

#define CALLER __builtin_return_address(0)

extern "C" {

void emu_atomic(const void* p, unsigned bytes) { check_atomic(p, bytes, true, CALLER); }
void emu_atomic_store(const void* p, unsigned bytes) { check_atomic(p, bytes, false, CALLER); }

// The variables lie apart from each other, so that an overrun hits no neighbour.
void* emu_threadgroup_memory(unsigned long bytes, unsigned long align, int id, int line) {
  if (id >= kMaxVariables) refuse("unsupported", "more than 64 threadgroup variables");
  if (!threadgroup_memory) {
    uint64_t size = 2 * kThreadgroupLimit + (kMaxVariables + 2) * kRedZone;
    threadgroup_memory =
        (uint8_t*)mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  }
  if (variable_live[id]) return variables[id]->data;
  variable_live[id] = true;
  uint64_t start = (threadgroup_bytes + align - 1) / align * align;
  if (start + bytes > kThreadgroupLimit) {
    refuse("threadgroup-memory", "threadgroup variables need more than %llu bytes (line %d)",
           (unsigned long long)kThreadgroupLimit, line);
  }
  threadgroup_bytes = start + bytes;
  Region*& region = variables[id];
  if (!region) {
    char name[64];
    snprintf(name, sizeof name, "threadgroup variable at line %d", line);
    region = add_region(name, nullptr, bytes, kThreadgroupVariable);
  }
  region->data = threadgroup_memory + 2 * start + kRedZone * (id + 1);
  memset(region->shadow, 0, bytes * sizeof(Shadow));
  memset(region->data, 0xFF, bytes);
  return region->data;
}

#define ACCESSES(n)                                                      \
  void __tsan_read##n(void* p) { check(p, n, false, CALLER); }           \
  void __tsan_write##n(void* p) { check(p, n, true, CALLER); }           \
  void __tsan_read_write##n(void* p) { check(p, n, true, CALLER); }      \
  void __tsan_unaligned_read##n(void* p) { check(p, n, false, CALLER); } \
  void __tsan_unaligned_write##n(void* p) { check(p, n, true, CALLER); } \
  void __tsan_unaligned_read_write##n(void* p) { check(p, n, true, CALLER); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* p, unsigned long n) { check(p, n, false, CALLER); }
void __tsan_write_range(void* p, unsigned long n) { check(p, n, true, CALLER); }
void* __tsan_memcpy(void* to, const void* from, unsigned long n) {
  check(from, n, false, CALLER);
  check(to, n, true, CALLER);
  return memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, unsigned long n) {
  check(from, n, false, CALLER);
  check(to, n, true, CALLER);
  return memmove(to, from, n);
}
void* __tsan_memset(void* to, int value, unsigned long n) {
  check(to, n, true, CALLER);
  return memset(to, value, n);
}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

// clang's undefined-behaviour checks: every data block starts with the place.
struct Place {
  const char* file;
  uint32_t line, column;
};
#define UNDEFINED(name, text)                                                              \
  void __ubsan_handle_##name##_abort(Place* place, void*, void*) {                         \
    refuse("undefined-behaviour", "%s at %s:%u:%u", text, place->file ? place->file : "?", \
           place->line, place->column);                                                    \
  }                                                                                        \
  void __ubsan_handle_##name(Place* place, void* a, void* b) {                             \
    __ubsan_handle_##name##_abort(place, a, b);                                            \
  }
UNDEFINED(out_of_bounds, "array index out of bounds")
UNDEFINED(shift_out_of_bounds, "shift amount out of range")
UNDEFINED(divrem_overflow, "division by zero or overflow")
UNDEFINED(add_overflow, "signed integer overflow (+)")
UNDEFINED(sub_overflow, "signed integer overflow (-)")
UNDEFINED(mul_overflow, "signed integer overflow (*)")
UNDEFINED(negate_overflow, "signed integer overflow (negate)")
UNDEFINED(type_mismatch_v1, "misaligned pointer access")
UNDEFINED(builtin_unreachable, "unreachable code")
UNDEFINED(missing_return, "function without return")

// float -> bfloat, rounded to nearest even, where the processor has no instruction for it.
__attribute__((weak)) __bf16 __truncsfbf2(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  bool nan = (bits & 0x7fffffff) > 0x7f800000;
  uint16_t high = nan ? (bits >> 16) | 0x40 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  __bf16 result;
  memcpy(&result, &high, 2);
  return result;
}
}
