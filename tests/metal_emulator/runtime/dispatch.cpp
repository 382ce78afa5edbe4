// Reads a job, runs its threadgroups one after the other, writes the outputs.
// emu_main is called in a child process of its own; its report goes to stdout.
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "runtime.h"

// run.py packs the same.
struct Head {
  uint32_t grid[3], threadgroup[3], buffers;
};
struct BufferHead {
  char name[64];
  uint64_t size, start;  // bytes; the kernel's pointer is `start` bytes into the data
  uint32_t kind, misalign;
};

static bool read_buffers(FILE* file, uint32_t count, void** pointers) {
  for (uint32_t i = 0; i < count; ++i) {
    BufferHead head;
    if (fread(&head, sizeof head, 1, file) != 1) return false;
    auto* memory = (uint8_t*)mmap(nullptr, head.size + 2 * kRedZone + 4096, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t* data = memory + kRedZone + head.misalign;
    add_region(head.name, data, head.size, (RegionKind)head.kind);
    if (head.kind == kOutput) {
      memset(data, 0xFF, head.size);
    } else if (head.size && fread(data, head.size, 1, file) != 1) {
      return false;
    }
    pointers[i] = data + head.start;
  }
  return true;
}

static void report_unwritten(const Region& region) {
  unsigned long long missing = 0, first = 0;
  for (uint64_t i = 0; i < region.size; ++i) {
    if (!region.shadow[i].written && !missing++) first = i;
  }
  if (missing) printf("UNWRITTEN %s %llu %llu\n", region.name, missing, first);
}

extern "C" int emu_main(const char* job, const char* out, uint32_t order, uint32_t seed) {
  FILE* file = fopen(job, "rb");
  Head head;
  void* pointers[64];
  if (!file || fread(&head, sizeof head, 1, file) != 1) return 2;
  if (!read_buffers(file, head.buffers, pointers)) return 2;
  fclose(file);

  uint32_t size[3], groups[3];
  for (int d = 0; d < 3; ++d) {
    size[d] = head.threadgroup[d] < head.grid[d] ? head.threadgroup[d] : head.grid[d];
    groups[d] = (head.grid[d] + size[d] - 1) / size[d];
  }
  start_threads((Order)order, seed);
  uint32_t count = groups[0] * groups[1] * groups[2];
  for (uint32_t i = 0; i < count; ++i) {
    uint32_t index = order == kReverse ? count - 1 - i : i;
    uint32_t position[3] = {index % groups[0], index / groups[0] % groups[1],
                            index / (groups[0] * groups[1])};
    run_threadgroup(index, position, head.grid, size, groups, pointers);
  }

  file = fopen(out, "wb");
  if (!file) return 2;
  for (uint32_t i = 0; i < head.buffers; ++i) {
    if (regions[i].kind == kInput) continue;
    if (regions[i].kind == kOutput) report_unwritten(regions[i]);
    fwrite(regions[i].data, 1, regions[i].size, file);
  }
  fclose(file);
  printf("OK accesses=%ld switches=%ld threadgroup_bytes=%llu partial_simd_ops=%ld\n", access_count,
         switch_count, (unsigned long long)threadgroup_bytes, partial_simd_count);
  fflush(stdout);
  return 0;
}
