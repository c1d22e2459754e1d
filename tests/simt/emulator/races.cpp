#include "races.h"

#include <algorithm>
#include <cstdio>
#include <vector>

#include "cuda_runtime_api.h"
#include "simt.h"

namespace simt::races {
namespace {

// What was last done to two bytes, by each warp's clock.
struct Cell {
  uint32_t written;
  int writer;
  Clock read;
};
constexpr size_t kCellBytes = 2;

struct Memory {
  Part part;
  std::vector<Cell> cells;
  void cover(Part wanted) {
    part = wanted;
    cells.resize(std::max(cells.size(), (wanted.bytes + kCellBytes - 1) / kCellBytes));
  }
};

Memory memories[2];
Clock clocks[kMostWarps];
// Clocks go on from block to block, so that what an earlier one did need not be wiped out: it was before all of this.
uint32_t newest = 0;

int current_warp() { return static_cast<int>(threadIdx.x) / kWarp; }

[[noreturn]] void report(const char* done, const Memory& memory, size_t cell, int other, const char* earlier) {
  char text[160];
  std::snprintf(text, sizeof text, "%s byte %zu of %s shared memory, which no barrier divides from warp %d's %s", done,
                cell * kCellBytes, &memory == memories ? "dynamic" : "static", other, earlier);
  fail(text);
}

void touch(const void* at, size_t bytes, bool writes) {
  const char* const first = static_cast<const char*>(at);
  for (Memory& memory : memories) {
    if (first < memory.part.begin || first >= memory.part.begin + memory.part.bytes) continue;
    const int warp = current_warp();
    const Clock& seen = clocks[warp];
    const size_t begin = (first - memory.part.begin) / kCellBytes;
    const size_t end = (first - memory.part.begin + bytes - 1) / kCellBytes;
    for (size_t i = begin; i <= end; ++i) {
      Cell& cell = memory.cells[i];
      const char* const done = writes ? "writes" : "reads";
      if (cell.written > seen[cell.writer]) report(done, memory, i, cell.writer, "write");
      if (!writes) {
        cell.read[warp] = seen[warp];
        continue;
      }
      for (int other = 0; other < kMostWarps; ++other)
        if (cell.read[other] > seen[other]) report(done, memory, i, other, "read");
      cell.written = seen[warp];
      cell.writer = warp;
    }
    return;
  }
}

}  // namespace

void begin_block(Part dynamic, Part fixed) {
  memories[0].cover(dynamic);
  memories[1].cover(fixed);
  for (Clock& clock : clocks) clock.fill(newest);
  ++newest;
  for (int warp = 0; warp < kMostWarps; ++warp) clocks[warp][warp] = newest;
}

void arrive(int warp, Clock& meeting) {
  for (int i = 0; i < kMostWarps; ++i) meeting[i] = std::max(meeting[i], clocks[warp][i]);
  newest = std::max(newest, ++clocks[warp][warp]);
}

void leave(int warp, const Clock& meeting) {
  for (int i = 0; i < kMostWarps; ++i) clocks[warp][i] = std::max(clocks[warp][i], meeting[i]);
}

void write(const void* at, size_t bytes) { touch(at, bytes, true); }

}  // namespace simt::races

// --- What g++ calls --------------------------------------------------------------------------------------------------

#define SIMT_ACCESSES(size)                                                                 \
  void __tsan_read##size(const void* at) { simt::races::touch(at, size, false); }           \
  void __tsan_write##size(const void* at) { simt::races::touch(at, size, true); }           \
  void __tsan_unaligned_read##size(const void* at) { simt::races::touch(at, size, false); } \
  void __tsan_unaligned_write##size(const void* at) { simt::races::touch(at, size, true); } \
  void __tsan_volatile_read##size(const void* at) { simt::races::touch(at, size, false); }  \
  void __tsan_volatile_write##size(const void* at) { simt::races::touch(at, size, true); }

extern "C" {
SIMT_ACCESSES(1)
SIMT_ACCESSES(2)
SIMT_ACCESSES(4)
SIMT_ACCESSES(8)
SIMT_ACCESSES(16)
void __tsan_read_range(const void* at, size_t bytes) { simt::races::touch(at, bytes, false); }
void __tsan_write_range(const void* at, size_t bytes) { simt::races::touch(at, bytes, true); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
