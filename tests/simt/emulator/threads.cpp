// What threads do, apart from computing: they meet, copy, and find out where memory is.
#include <cstdlib>
#include <cstring>
#include <string>

#include "block.h"

namespace simt {

void fail(const std::string& what) {
  block->failure = "thread " + std::to_string(threadIdx.x) + ": " + what;
  block->wait();
  std::abort();  // nobody wakes it
}

namespace {

void meet_lanes(unsigned mask, bool whole, const void* in, void* out, void (*together)(const Meeting&), Site site) {
  Thread& thread = block->current();
  thread.status = Status::kInWarp;
  thread.site = site;
  thread.mask = mask;
  thread.whole = whole;
  thread.in = in;
  thread.out = out;
  thread.together = together;
  block->try_meeting(thread, static_cast<int>(threadIdx.x) / kWarp);
  block->wait();
}

}  // namespace

void meet(unsigned mask, const void* in, void* out, void (*together)(const Meeting&), Site site) {
  if (!(mask >> threadIdx.x % kWarp & 1)) fail(text_of(site) + ": this lane is not in its own mask");
  meet_lanes(mask, false, in, out, together, site);
}

void meet_whole_warp(const void* in, void* out, void (*together)(const Meeting&), Site site) {
  meet_lanes(0xffffffffu, true, in, out, together, site);
}

Votes meet_block(bool vote, Site site) {
  Thread& thread = block->current();
  thread.status = Status::kInBlock;
  thread.site = site;
  thread.mask = 0;
  thread.vote = vote;
  block->block_arrives();
  block->wait();
  return thread.votes;
}

void meet_at_barrier(int barrier, int threads, bool waits, Site site) {
  if (barrier < 1 || barrier >= kBarriers || threads < kWarp || threads % kWarp != 0)
    fail(text_of(site) + ": barrier " + std::to_string(barrier) + " of " + std::to_string(threads) + " threads");
  Thread& thread = block->current();
  thread.site = site;
  thread.mask = static_cast<unsigned>(barrier);
  if (waits) thread.status = Status::kAtBarrier;
  block->barrier_arrives(barrier, threads);
  if (waits) block->wait();
}

void* dynamic_shared_memory() { return dynamic_memory(); }

void check_shared(const void* at, size_t bytes, size_t alignment, const char* instruction) {
  if (!block->dynamic_shared().holds(at, bytes) && !block->static_shared().holds(at, bytes))
    fail(std::string(instruction) + ": not in shared memory");
  if (reinterpret_cast<uintptr_t>(at) % alignment != 0)
    fail(std::string(instruction) + ": not aligned to " + std::to_string(alignment) + " bytes");
}

// Static shared memory comes behind all that dynamic shared memory can be.
constexpr uint32_t kStaticAddress = 1 << 20;

uint32_t shared_address(const void* at) {
  const Range parts[] = {block->dynamic_shared(), block->static_shared()};
  for (const Range& part : parts)
    if (part.holds(at, 0))
      return static_cast<uint32_t>(static_cast<const char*>(at) - part.begin) + (&part == parts ? 0 : kStaticAddress);
  fail("__cvta_generic_to_shared: not in shared memory");
}

void* shared_pointer(uint32_t address) {
  return address < kStaticAddress ? block->dynamic_shared().begin + address
                                  : block->static_shared().begin + (address - kStaticAddress);
}

void copy_later(void* to, const void* from, int bytes, int wanted) {
  check_shared(to, bytes, bytes, "cp.async");
  if (wanted < 0 || wanted > bytes) fail("cp.async: " + std::to_string(wanted) + " bytes of " + std::to_string(bytes));
  if (wanted > 0 && reinterpret_cast<uintptr_t>(from) % bytes != 0) fail("cp.async: source is not aligned");
  Thread& thread = block->current();
  thread.copies.push_back({to, from, bytes, wanted, thread.open_group});
  races::write(to, bytes);
  poison(to, bytes);
}

void close_group() { ++block->current().open_group; }

void wait_for_groups(int kept) {
  Thread& thread = block->current();
  const auto is_old = [&](const Copy& copy) { return copy.group < thread.open_group - kept; };
  for (const Copy& copy : thread.copies) {
    if (!is_old(copy)) continue;
    races::write(copy.to, copy.bytes);
    if (copy.wanted > 0) std::memcpy(copy.to, copy.from, copy.wanted);
    std::memset(static_cast<char*>(copy.to) + copy.wanted, 0, copy.bytes - copy.wanted);
  }
  std::erase_if(thread.copies, is_old);
}

void wait_for_all() {
  close_group();
  wait_for_groups(0);
}

}  // namespace simt
