// GPU threads are fibers: they switch at barriers and SIMD-group functions, and nowhere else.
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "runtime.h"

extern "C" void emu_kernel_entry(void** buffers, const uint32_t* slots);  // made with the kernel

enum State { kReady, kAtBarrier, kInSimdgroup, kDone };
struct Thread {
  int fiber;  // -1 until it starts
  State state;
  int operation, site;
  uint32_t slots[kSlots];
};
struct Fiber {
  ucontext_t context;
  uint8_t* stack;
  int thread;
};
struct Simdgroup {
  int arrived, alive, operation, site, turn;
  uint32_t present[2];  // lanes that take part, of this turn and the one before
  Epochs epochs;
};
constexpr int kSimdBarrier = 100;
constexpr int kQueue = 2 * kMaxThreads;

int current = -1;
uint32_t current_group;
Epochs group_epochs;

static Thread threads[kMaxThreads];
static Fiber fibers[kMaxThreads];
static Simdgroup simdgroups[kMaxThreads / kLanes];
static uint8_t lane_values[kMaxThreads / kLanes][2][kLanes * 16];
static int visits[kMaxThreads];  // the order in which threads start
static int free_fibers[kMaxThreads], free_count, fiber_count;
static int queue[kQueue], queue_head, queue_tail;
static int thread_count, alive, finished, at_barrier, barrier_site;
static unsigned barrier_flags;
static ucontext_t scheduler;
static void** kernel_buffers;
static Order visit_order;
static uint32_t random_state = 1;

Epochs simd_epochs() { return simdgroups[current / kLanes].epochs; }
const uint32_t* thread_slots(int thread) { return threads[thread].slots; }
bool on_own_stack(uintptr_t address) {
  return address - (uintptr_t)fibers[threads[current].fiber].stack < kStack;
}

void start_threads(Order order, uint32_t seed) {
  visit_order = order;
  random_state = seed | 1;
}

static uint32_t next_random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 17;
  random_state ^= random_state << 5;
  return random_state;
}

static int line_of(int site) { return site >> 12; }

static void push(int thread) {
  threads[thread].state = kReady;
  queue[queue_tail++ % kQueue] = thread;
}
static int pop() { return queue[queue_head++ % kQueue]; }

static void release_simdgroup(int group) {
  Simdgroup& simd = simdgroups[group];
  if (!simd.arrived || simd.arrived < simd.alive) return;
  simd.arrived = 0;
  int first = group * kLanes;
  int end = first + kLanes < thread_count ? first + kLanes : thread_count;
  for (int i = first; i < end; ++i) {
    int thread = visit_order == kReverse ? first + end - 1 - i : i;
    if (threads[thread].state == kInSimdgroup) push(thread);
  }
}

static void release_barrier() {
  if (at_barrier < thread_count) return;
  at_barrier = 0;
  if (barrier_flags & kMemDevice) ++group_epochs.device;
  if (barrier_flags & kMemThreadgroup) ++group_epochs.threadgroup;
  for (int i = 0; i < thread_count; ++i) {
    if (threads[visits[i]].state == kAtBarrier) push(visits[i]);
  }
}

static void wait() {
  ++switch_count;
  int me = current;
  swapcontext(&fibers[threads[me].fiber].context, &scheduler);
  current = me;
}

static void finish_thread() {
  threads[current].state = kDone;
  --alive;
  ++finished;
  --simdgroups[current / kLanes].alive;
  release_simdgroup(current / kLanes);
}

// A fiber goes on with the next thread that has not started: most threads cost no switch.
static void fiber_main(int id) {
  for (;;) {
    current = fibers[id].thread;
    threads[current].fiber = id;
    emu_kernel_entry(kernel_buffers, threads[current].slots);
    finish_thread();
    if (queue_head < queue_tail && threads[queue[queue_head % kQueue]].fiber < 0) {
      fibers[id].thread = pop();
      continue;
    }
    free_fibers[free_count++] = id;
    current = -1;
    ++switch_count;
    swapcontext(&fibers[id].context, &scheduler);
  }
}

static int take_fiber() {
  if (free_count) return free_fibers[--free_count];
  int id = fiber_count++;
  Fiber& fiber = fibers[id];
  // The first page faults, so that a thread that needs more stack dies at once.
  auto* memory = (uint8_t*)mmap(nullptr, kStack + 4096, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  mprotect(memory, 4096, PROT_NONE);
  fiber.stack = memory + 4096;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, (void (*)())fiber_main, 1, id);
  return id;
}

static void enter_simdgroup(int operation, int site) {
  Simdgroup& simd = simdgroups[current / kLanes];
  if (!simd.arrived) {
    simd.operation = operation;
    simd.site = site;
    simd.turn ^= 1;
    simd.present[simd.turn] = 0;
  } else if (simd.operation != operation || simd.site != site) {
    refuse("simdgroup-divergence",
           "lane executes a SIMD-group function at line %d while other lanes wait at line %d",
           line_of(site), line_of(simd.site));
  }
  simd.present[simd.turn] |= 1u << (current % kLanes);
  ++simd.arrived;
  threads[current].state = kInSimdgroup;
  threads[current].site = site;
}

extern "C" {

void emu_barrier(unsigned flags, int site) {
  if (at_barrier && barrier_site != site) {
    refuse("barrier-divergence",
           "thread waits at threadgroup_barrier line %d while others wait at another, line %d",
           line_of(site), line_of(barrier_site));
  }
  barrier_site = site;
  barrier_flags = flags;
  threads[current].state = kAtBarrier;
  threads[current].site = site;
  ++at_barrier;
  release_barrier();
  wait();
}

void emu_simd_barrier(unsigned flags, int site) {
  int group = current / kLanes;
  enter_simdgroup(kSimdBarrier, site);
  Simdgroup& simd = simdgroups[group];
  if (simd.arrived == simd.alive) {
    if (flags & kMemDevice) ++simd.epochs.device;
    if (flags & kMemThreadgroup) ++simd.epochs.threadgroup;
  }
  release_simdgroup(group);
  wait();
}

const uint8_t* emu_simd_gather(const void* value, unsigned bytes, int operation, int site,
                               unsigned* active, unsigned* lane) {
  if (bytes > 16) refuse("unsupported", "a value of more than 16 bytes in a SIMD-group function");
  int group = current / kLanes;
  enter_simdgroup(operation, site);
  int turn = simdgroups[group].turn;
  uint8_t* values = lane_values[group][turn];
  memcpy(values + 16 * (current % kLanes), value, bytes);
  release_simdgroup(group);
  wait();
  *active = simdgroups[group].present[turn];
  *lane = current % kLanes;
  if (*active != 0xffffffffu) ++partial_simd_count;
  return values;
}
}

[[noreturn]] static void refuse_stuck() {
  int barriers = 0, lanes = 0, barrier_line = 0, lane_line = 0;
  for (int i = 0; i < thread_count; ++i) {
    if (threads[i].state == kAtBarrier) ++barriers, barrier_line = line_of(threads[i].site);
    if (threads[i].state == kInSimdgroup) ++lanes, lane_line = line_of(threads[i].site);
  }
  current = -1;
  if (lanes) {
    refuse("simdgroup-divergence",
           "%d lanes wait in a SIMD-group function at line %d, %d threads at threadgroup_barrier "
           "line %d, %d threads have returned",
           lanes, lane_line, barriers, barrier_line, thread_count - alive);
  }
  refuse("barrier-divergence",
         "only %d of %d threads reached threadgroup_barrier at line %d (%d have returned)",
         barriers, thread_count, barrier_line, thread_count - alive);
}

static void set_slots(uint32_t* slots, int thread, const uint32_t position[3],
                      const uint32_t size[3], const uint32_t grid[3], const uint32_t group_size[3],
                      const uint32_t groups[3]) {
  uint32_t inside[3] = {thread % size[0], thread / size[0] % size[1], thread / (size[0] * size[1])};
  memset(slots, 0, kSlots * sizeof *slots);
  for (int d = 0; d < 3; ++d) {
    slots[kPositionInGrid + d] = position[d] * group_size[d] + inside[d];
    slots[kPositionInThreadgroup + d] = inside[d];
    slots[kThreadgroupPosition + d] = position[d];
    slots[kThreadgroupsPerGrid + d] = groups[d];
    slots[kThreadsPerGrid + d] = grid[d];
    slots[kThreadsPerThreadgroup + d] = size[d];
    slots[kDispatchThreadsPerThreadgroup + d] = group_size[d];
  }
  int full = group_size[0] * group_size[1] * group_size[2];
  slots[kIndexInThreadgroup] = thread;
  slots[kIndexInSimdgroup] = thread % kLanes;
  slots[kSimdgroupIndex] = thread / kLanes;
  slots[kSimdgroupsPerThreadgroup] = (thread_count + kLanes - 1) / kLanes;
  slots[kDispatchSimdgroups] = (full + kLanes - 1) / kLanes;
  slots[kThreadsPerSimdgroup] = kLanes;
}

static void order_visits() {
  for (int i = 0; i < thread_count; ++i) {
    visits[i] = visit_order == kReverse ? thread_count - 1 - i : i;
  }
  if (visit_order != kRandom) return;
  for (int i = thread_count - 1; i > 0; --i) {
    int j = next_random() % (i + 1), other = visits[i];
    visits[i] = visits[j];
    visits[j] = other;
  }
}

void run_threadgroup(uint32_t index, const uint32_t position[3], const uint32_t grid[3],
                     const uint32_t group_size[3], const uint32_t groups[3], void** buffers) {
  uint32_t size[3];  // smaller at the edges of the grid
  for (int d = 0; d < 3; ++d) {
    uint32_t left = grid[d] - position[d] * group_size[d];
    size[d] = left < group_size[d] ? left : group_size[d];
  }
  current_group = index;
  kernel_buffers = buffers;
  alive = thread_count = size[0] * size[1] * size[2];
  at_barrier = queue_head = queue_tail = finished = 0;
  group_epochs = {1, 1};
  reset_threadgroup_memory();
  for (int first = 0; first < thread_count; first += kLanes) {
    int left = thread_count - first;
    Simdgroup& simd = simdgroups[first / kLanes];
    simd = {};
    simd.alive = left < kLanes ? left : kLanes;
    simd.epochs = {1, 1};
  }
  for (int i = 0; i < thread_count; ++i) {
    threads[i].fiber = -1;
    set_slots(threads[i].slots, i, position, size, grid, group_size, groups);
  }
  order_visits();
  for (int i = 0; i < thread_count; ++i) push(visits[i]);
  while (finished < thread_count) {
    if (queue_head == queue_tail) refuse_stuck();
    int thread = pop(), fiber = threads[thread].fiber;
    if (fiber < 0) {
      fiber = take_fiber();
      fibers[fiber].thread = thread;
    }
    current = thread;
    ++switch_count;
    swapcontext(&scheduler, &fibers[fiber].context);
    current = -1;
  }
  if (at_barrier) refuse_stuck();
}
