#include "block.h"

#include <sys/mman.h>

#include <cstring>
#include <numeric>

#if !defined(__x86_64__)
#error "fibers are switched by hand, for x86-64 only"
#endif

// Leaves the registers that a call keeps on the stack of one fiber, and takes those of another from its own.
extern "C" void simt_switch(void** from, void* to);
asm(R"(
.text
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");

namespace simt {

Block* block = nullptr;

std::string text_of(const Site& site) {
  return std::string(site.instruction) + " in " + site.file + ":" + std::to_string(site.line);
}

namespace {

constexpr size_t kStackBytes = 256 << 10;

// The stack of a thread, with a page below it that must not be touched.
char* stack_of(int thread) {
  constexpr size_t kPage = 4096;
  static char* const memory = map_memory(kMostThreads * kStackBytes);
  static int prepared = 0;
  for (; prepared <= thread; ++prepared) mprotect(memory + prepared * kStackBytes, kPage, PROT_NONE);
  return memory + thread * kStackBytes;
}

bool same(const Site& a, const Site& b) {
  return a.line == b.line && std::strcmp(a.file, b.file) == 0 && std::strcmp(a.instruction, b.instruction) == 0;
}

}  // namespace

void Block::start(int thread) {
  Thread& t = threads_[thread];
  t.status = Status::kReady;
  t.open_group = 0;
  t.copies.clear();
  // As if simt_switch had been called from nowhere: six registers, then the address to return to, on a stack that is
  // aligned as at the start of a function.
  void** top = reinterpret_cast<void**>(stack_of(thread) + kStackBytes) - 2;
  *top = reinterpret_cast<void*>(+[] { block->thread_body(); });
  t.stack_pointer = top - 6;
}

void Block::thread_body() {
  launch_.run(launch_.arguments);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  current().status = Status::kReturned;
  // Others may have waited for nobody but this thread.
  for (int lane = 0; lane < lanes(warp); ++lane) {
    const Thread& other = threads_[warp * kWarp + lane];
    if (other.status == Status::kInWarp) try_meeting(other, warp);
  }
  block_arrives();
  wait();
}

void Block::wait() { simt_switch(&current().stack_pointer, scheduler_); }

void Block::step(int thread) {
  threadIdx = {static_cast<unsigned>(thread), 0, 0};
  simt_switch(&scheduler_, threads_[thread].stack_pointer);
}

// Every ready lane of a warp until it waits. Whether there was one.
bool Block::step_warp(int warp, bool reverse, std::minstd_rand* chance) {
  int order[kWarp];
  const int n = lanes(warp);
  std::iota(order, order + n, warp * kWarp);
  if (reverse) std::reverse(order, order + n);
  if (chance != nullptr) std::shuffle(order, order + n, *chance);
  bool any = false;
  for (int i = 0; i < n && failure.empty(); ++i) {
    if (threads_[order[i]].status != Status::kReady) continue;
    any = true;
    step(order[i]);
  }
  return any;
}

void Block::run(int64_t index, bool reverse, std::minstd_rand* chance) {
  blockIdx = {static_cast<unsigned>(index), 0, 0};
  poison(shared_.begin, shared_.bytes);
  poison(dynamic_memory() - kGuard, kGuard + launch_.shared_bytes + kGuard);
  races::begin_block({dynamic_memory(), static_cast<size_t>(launch_.shared_bytes)}, {shared_.begin, shared_.bytes});
  for (int i = 0; i < count(); ++i) start(i);
  for (Barrier& barrier : barriers_) barrier = {};

  // A warp goes as far as it can before the next has its turn, unless the order is drawn.
  std::vector<int> order(warps());
  std::iota(order.begin(), order.end(), 0);
  if (reverse) std::reverse(order.begin(), order.end());
  for (bool any = true; any && failure.empty();) {
    any = false;
    if (chance != nullptr) std::shuffle(order.begin(), order.end(), *chance);
    for (const int warp : order)
      while (step_warp(warp, reverse, chance)) {
        any = true;
        if (chance != nullptr && (*chance)() % 2) break;
      }
  }
  if (!failure.empty()) return;
  if (std::any_of(threads_.begin(), threads_.end(), [](const Thread& t) { return t.status != Status::kReturned; }))
    return void(failure = "threads wait for each other in different places:" + waiting());
  for (const Barrier& barrier : barriers_)
    if (barrier.arrived > 0) failure = "returned, although a barrier waits for more threads";
  const Range dynamic = dynamic_shared();
  if (!is_poison(dynamic.begin - kGuard, kGuard)) failure = "wrote before the start of dynamic shared memory";
  if (!is_poison(dynamic.begin + dynamic.bytes, kGuard))
    failure = "wrote past the " + std::to_string(dynamic.bytes) + " bytes of dynamic shared memory";
}

bool Block::meets(const Thread& thread, int warp) const {
  if (thread.whole && lanes(warp) < kWarp) return false;
  for (int lane = 0; lane < lanes(warp); ++lane) {
    const Thread& other = threads_[warp * kWarp + lane];
    if (!(thread.mask >> lane & 1)) continue;
    if (other.status == Status::kReturned && !thread.whole) continue;
    if (other.status != Status::kInWarp || other.mask != thread.mask || !same(other.site, thread.site)) return false;
  }
  return true;
}

// Lets the lanes go on that `thread` waits for, and it, if all of them are here.
void Block::try_meeting(const Thread& thread, int warp) {
  if (!meets(thread, warp)) return;
  const unsigned mask = thread.mask;
  Meeting meeting = {};
  for (int lane = 0; lane < lanes(warp); ++lane) {
    Thread& other = threads_[warp * kWarp + lane];
    if (!(mask >> lane & 1) || other.status == Status::kReturned) continue;
    other.status = Status::kReady;
    meeting.in[lane] = other.in;
    meeting.out[lane] = other.out;
  }
  thread.together(meeting);
}

void Block::block_arrives() {
  Votes votes = {};
  const Thread* first = nullptr;
  for (const Thread& thread : threads_) {
    if (thread.status == Status::kReturned) continue;
    if (thread.status != Status::kInBlock) return;
    if (first == nullptr) first = &thread;
    if (!same(thread.site, first->site)) return;
    ++votes.all;
    votes.yes += thread.vote;
  }
  for (Thread& thread : threads_) {
    if (thread.status != Status::kInBlock) continue;
    thread.status = Status::kReady;
    thread.votes = votes;
  }
  races::Clock clock = {};
  for (int warp = 0; warp < warps(); ++warp) races::arrive(warp, clock);
  for (int warp = 0; warp < warps(); ++warp) races::leave(warp, clock);
}

void Block::barrier_arrives(int number, int threads) {
  Barrier& barrier = barriers_[number];
  if (barrier.arrived > 0 && barrier.expected != threads)
    fail("barrier " + std::to_string(number) + " of " + std::to_string(threads) + " and of " +
         std::to_string(barrier.expected) + " threads");
  barrier.expected = threads;
  races::arrive(static_cast<int>(threadIdx.x) / kWarp, barrier.clock);
  if (++barrier.arrived < threads) return;
  for (int i = 0; i < count(); ++i) {
    Thread& thread = threads_[i];
    if (thread.status != Status::kAtBarrier || thread.mask != static_cast<unsigned>(number)) continue;
    thread.status = Status::kReady;
    races::leave(i / kWarp, barrier.clock);
  }
  barrier = {};
}

std::string Block::waiting() const {
  std::string text;
  for (int begin = 0, end; begin < count(); begin = end) {
    const Thread& thread = threads_[begin];
    for (end = begin + 1; end < count(); ++end) {
      const Thread& other = threads_[end];
      if (other.status != thread.status) break;
      if (thread.status != Status::kReturned && (!same(other.site, thread.site) || other.mask != thread.mask)) break;
    }
    text += "\n  threads " + std::to_string(begin) + " to " + std::to_string(end - 1);
    if (thread.status == Status::kReturned) {
      text += " have returned";
      continue;
    }
    text += ": " + text_of(thread.site);
  }
  return text;
}

}  // namespace simt
