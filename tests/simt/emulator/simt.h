// Runs the threads of a CUDA block one at a time, each as a fiber that goes on until it has to wait for others.
//
// What a GPU leaves to chance, the environment decides: FLASH_RWKV_SIMT_ORDER is "forward" (the default), "reverse" or
// a number to draw the order of blocks, warps and lanes from. A kernel whose results depend on it has a race.
// Mistakes that would hang a GPU or go unnoticed there end the launch with cudaErrorLaunchFailure and a message.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace simt {

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;              // of a block
constexpr size_t kSharedBytes = 48 << 10;       // dynamic, that any kernel may have
constexpr size_t kMostSharedBytes = 227 << 10;  // dynamic, for kernels that ask
constexpr unsigned char kPoison = 0xff;         // every byte of a NaN, in any dtype

// Where a thread waits: an instruction and its place in the source.
struct Site {
  const char* instruction;
  const char* file;
  int line;
};

// --- Launches, from the host ---------------------------------------------------------------------------------------

struct Launch {
  const void* kernel;
  int64_t blocks, threads, shared_bytes;
  void (*run)(void* arguments);  // the kernel, for the thread at hand
  void* arguments;
};

// Whether all went well; if not, message() says what did not.
bool run(const Launch&);
const std::string& message();
void allow_shared_bytes(const void* kernel, int bytes);

// --- What threads do -------------------------------------------------------------------------------------------------

// Ends the launch from within a thread.
[[noreturn]] void fail(const std::string& what);

// What the lanes of a warp bring to an instruction that they execute together, and where each wants its result; nullptr
// for lanes that take no part.
struct Meeting {
  const void* in[kWarp];
  void* out[kWarp];
};

// Waits until the lanes in `mask` that have not returned are all here. The last one to come calls `together`.
void meet(unsigned mask, const void* in, void* out, void (*together)(const Meeting&), Site site);
// The same for instructions that want all 32 lanes, none of which may have returned.
void meet_whole_warp(const void* in, void* out, void (*together)(const Meeting&), Site site);

struct Votes {
  int yes, all;
};

// Waits until all threads of the block that have not returned are here.
Votes meet_block(bool vote, Site site);

// Barrier 1 … 15 of `threads` threads: counts this one, which waits for the others only if it says so.
void meet_at_barrier(int barrier, int threads, bool waits, Site site);

void* dynamic_shared_memory();
// Ends the launch unless these bytes are shared memory, at a multiple of `alignment`.
void check_shared(const void* at, size_t bytes, size_t alignment, const char* instruction);
// The address of shared memory as instructions of PTX take it, and back.
uint32_t shared_address(const void* at);
void* shared_pointer(uint32_t address);

// Copies to shared memory that are done only when the thread waits for them, and are garbage until then.
void copy_later(void* to, const void* from, int bytes, int wanted);
void close_group();
// Of all groups but the `kept` youngest; wait_for_all: also what no group has been closed behind.
void wait_for_groups(int kept);
void wait_for_all();

}  // namespace simt
