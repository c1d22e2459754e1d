// The threads of the block that runs, each a fiber, and what they wait for.
#pragma once

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "cuda_runtime_api.h"
#include "memory.h"
#include "races.h"
#include "simt.h"

namespace simt {

struct Copy {
  void* to;
  const void* from;
  int bytes, wanted;
  int64_t group;
};

enum class Status { kReady, kInWarp, kInBlock, kAtBarrier, kReturned };

struct Thread {
  void* stack_pointer;
  Status status;
  Site site;
  unsigned mask;
  bool whole;  // no lane of the mask may be missing
  const void* in;
  void* out;
  void (*together)(const Meeting&);
  bool vote;
  Votes votes;
  int64_t open_group;
  std::vector<Copy> copies;
};

// A barrier of some threads of the block. Thread::mask is its number while one waits there.
struct Barrier {
  int expected = 0, arrived = 0;
  races::Clock clock = {};
};
constexpr int kBarriers = 16;

// As messages name it.
std::string text_of(const Site& site);

class Block {
 public:
  Block(const Launch& launch, Range shared) : launch_(launch), shared_(shared), threads_(launch.threads) {}

  // In an order drawn from `chance`, or of the numbers of warps and lanes.
  void run(int64_t index, bool reverse, std::minstd_rand* chance);

  Thread& current() { return threads_[threadIdx.x]; }
  const Range& static_shared() const { return shared_; }
  Range dynamic_shared() const { return {dynamic_memory(), static_cast<size_t>(launch_.shared_bytes)}; }
  std::string failure;

  void wait();
  void try_meeting(const Thread& thread, int warp);
  void block_arrives();
  void barrier_arrives(int barrier, int threads);
  void thread_body();

 private:
  int warps() const { return (count() + kWarp - 1) / kWarp; }
  int count() const { return static_cast<int>(threads_.size()); }
  int lanes(int warp) const { return std::min(kWarp, count() - warp * kWarp); }
  void start(int thread);
  bool step_warp(int warp, bool reverse, std::minstd_rand* chance);
  void step(int thread);
  bool meets(const Thread& thread, int warp) const;
  std::string waiting() const;

  const Launch& launch_;
  Range shared_;
  std::vector<Thread> threads_;
  Barrier barriers_[kBarriers];
  void* scheduler_ = nullptr;
};

// The one that runs: one launch at a time, since what kernels see of it is in global variables.
extern Block* block;

}  // namespace simt
