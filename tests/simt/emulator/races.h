// Finds accesses to shared memory by different warps that no barrier puts into an order, whatever order they happened in.
//
// Warps have vector clocks (Flanagan and Freund, "FastTrack", PLDI 2009): a barrier gives those who wait at it what those
// who came to it have seen. A read or write that another warp's clock has not seen, though it conflicts, is a race. Lanes of
// one warp are not told apart; what they do to each other shows when their order changes.
//
// Accesses are reported by the code itself, if g++ has compiled it with -fsanitize=thread, whose run-time library this is.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace simt::races {

constexpr int kMostWarps = 32;
using Clock = std::array<uint32_t, kMostWarps>;

// A part of shared memory.
struct Part {
  const char* begin;
  size_t bytes;
};

// Nothing has happened yet, to these two parts.
void begin_block(Part dynamic, Part fixed);

// What a warp has done so far is known to those who meet at `meeting`, and the other way round.
void arrive(int warp, Clock& meeting);
void leave(int warp, const Clock& meeting);

// A background copy writes from when it begins to when it is waited for.
void write(const void* at, size_t bytes);

}  // namespace simt::races
