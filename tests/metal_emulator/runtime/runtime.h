// One emulated dispatch: what memory.cpp, threads.cpp and dispatch.cpp share.
// Every memory access of the kernel is reported by clang's -fsanitize=thread instrumentation;
// the __tsan_* functions are ours, so that no sanitizer runtime is linked.
#pragma once
#include <stdint.h>

constexpr int kMaxThreads = 1024;                        // of one threadgroup
constexpr int kLanes = 32;                               // of one SIMD-group
constexpr int kMaxVariables = 64;                        // threadgroup variables of one kernel
constexpr uint64_t kStack = 128 << 10;                   // bytes of one thread
constexpr uint64_t kRedZone = 256;                       // bytes around each buffer
constexpr uint64_t kThreadgroupLimit = 32768;            // bytes
constexpr uint32_t kMemDevice = 1, kMemThreadgroup = 2;  // MSL's mem_flags

enum RegionKind : uint32_t { kInput, kOutput, kInitialisedOutput, kThreadgroupVariable };
enum Mark : uint8_t { kNever, kPlain, kAtomic };

// The last write and the last read of one byte. An epoch counts barriers: accesses of two
// threads are in order if a barrier that fences their memory came between them.
struct Shadow {
  uint32_t write_group, write_epoch, write_simd_epoch;
  uint32_t read_group, read_epoch, read_simd_epoch;
  uint16_t write_thread, read_thread;
  Mark written;
  bool read, many_readers, readers_of_many_groups;
};

struct Region {
  char name[64];
  uint8_t* data;
  uint64_t size;
  RegionKind kind;
  Shadow* shadow;
};

// Slots of the numbers that a thread knows about itself; text.py names the same ones.
enum Slot {
  kPositionInGrid = 0,
  kPositionInThreadgroup = 3,
  kThreadgroupPosition = 6,
  kThreadgroupsPerGrid = 9,
  kThreadsPerGrid = 12,
  kThreadsPerThreadgroup = 15,
  kDispatchThreadsPerThreadgroup = 18,
  kIndexInThreadgroup = 21,
  kIndexInSimdgroup = 22,
  kSimdgroupIndex = 23,
  kSimdgroupsPerThreadgroup = 24,
  kDispatchSimdgroups = 25,
  kThreadsPerSimdgroup = 26,
  kGridOrigin = 27,
  kSlots = 30,
};

struct Epochs {
  uint32_t device, threadgroup;
};

// The place where the running thread stands.
extern int current;             // its index in the threadgroup; -1 outside of any thread
extern uint32_t current_group;  // of its threadgroup in the grid
extern Epochs group_epochs;
Epochs simd_epochs();
const uint32_t* thread_slots(int thread);
bool on_own_stack(uintptr_t address);

extern Region regions[64];
extern int region_count;
extern long access_count, switch_count, partial_simd_count;
extern uint64_t threadgroup_bytes;

[[noreturn]] void refuse(const char* kind, const char* format, ...)
    __attribute__((format(printf, 2, 3)));
Region* add_region(const char* name, uint8_t* data, uint64_t size, RegionKind kind);
void reset_threadgroup_memory();

enum Order : uint32_t { kForward, kReverse, kRandom };
void start_threads(Order order, uint32_t seed);
void run_threadgroup(uint32_t index, const uint32_t position[3], const uint32_t grid[3],
                     const uint32_t group_size[3], const uint32_t groups[3], void** buffers);
