#include "simt.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>
#include <optional>
#include <random>
#include <vector>

#include "cuda_runtime_api.h"
#include "races.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

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
namespace {

// --- Memory ----------------------------------------------------------------------------------------------------------

char* map_memory(size_t bytes) {
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  return static_cast<char*>(memory);
}

void poison(void* from, size_t bytes) { std::memset(from, kPoison, bytes); }

bool is_poison(const char* from, size_t bytes) {
  return std::all_of(from, from + bytes, [](char byte) { return static_cast<unsigned char>(byte) == kPoison; });
}

struct Range {
  char* begin = nullptr;
  size_t bytes = 0;
  bool holds(const void* at, size_t size) const {
    const char* const first = static_cast<const char*>(at);
    return begin <= first && first + size <= begin + bytes;
  }
};

// `__shared__` variables are thread_local: of one OS thread, so shared by its fibers, and side by side in memory.
thread_local volatile char any_shared_variable;

Range static_shared() {
  any_shared_variable = 0;  // without a use there may be no memory yet
  Range range;
  dl_iterate_phdr(
      [](dl_phdr_info* module, size_t, void* out) {
        Range tls;
        bool ours = false;
        const auto here = reinterpret_cast<uintptr_t>(&static_shared);
        for (int i = 0; i < module->dlpi_phnum; ++i) {
          const auto& part = module->dlpi_phdr[i];
          const uintptr_t begin = module->dlpi_addr + part.p_vaddr;
          if (part.p_type == PT_LOAD) ours = ours || (begin <= here && here < begin + part.p_memsz);
          if (part.p_type == PT_TLS) tls = {static_cast<char*>(module->dlpi_tls_data), part.p_memsz};
        }
        if (ours) *static_cast<Range*>(out) = tls;
        return static_cast<int>(ours);
      },
      &range);
  return range;
}

// Bytes before and behind dynamic shared memory that must stay poison.
constexpr size_t kGuard = 4096;

char* dynamic_memory() {
  static char* const memory = map_memory(kGuard + kMostSharedBytes + kGuard);
  return memory + kGuard;
}

// --- Threads ---------------------------------------------------------------------------------------------------------

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

constexpr size_t kStackBytes = 256 << 10;

// The stack of a thread, with a page below it that must not be touched.
char* stack_of(int thread) {
  constexpr size_t kPage = 4096;
  static char* const memory = map_memory(kMostThreads * kStackBytes);
  static int prepared = 0;
  for (; prepared <= thread; ++prepared) mprotect(memory + prepared * kStackBytes, kPage, PROT_NONE);
  return memory + thread * kStackBytes;
}

// --- The block that runs ---------------------------------------------------------------------------------------------

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

Block* block = nullptr;

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

std::string text_of(const Site& site) {
  return std::string(site.instruction) + " in " + site.file + ":" + std::to_string(site.line);
}

bool same(const Site& a, const Site& b) {
  return a.line == b.line && std::strcmp(a.file, b.file) == 0 && std::strcmp(a.instruction, b.instruction) == 0;
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

// --- Launches --------------------------------------------------------------------------------------------------------

std::string last_message;
std::map<const void*, size_t> allowed_bytes;

// One launch at a time: what kernels see of it is in global variables.
std::mutex& launches() {
  static std::mutex mutex;
  return mutex;
}

bool refuse(const std::string& why) {
  last_message = why;
  return false;
}

struct Order {
  bool reverse = false;
  std::optional<std::minstd_rand> chance;
};

std::optional<Order> wanted_order() {
  const char* const text = std::getenv("FLASH_RWKV_SIMT_ORDER");
  if (text == nullptr || std::strcmp(text, "forward") == 0) return Order{};
  if (std::strcmp(text, "reverse") == 0) return Order{true, {}};
  char* end = nullptr;
  const unsigned long seed = std::strtoul(text, &end, 10);
  if (end == text || *end != 0) return std::nullopt;
  return Order{false, std::minstd_rand(static_cast<unsigned>(seed) + 1)};
}

}  // namespace

const std::string& message() { return last_message; }

void allow_shared_bytes(const void* kernel, int bytes) {
  const std::lock_guard lock(launches());
  allowed_bytes[kernel] = bytes;
}

bool run(const Launch& launch) {
  const std::lock_guard lock(launches());
  const auto found = allowed_bytes.find(launch.kernel);
  const size_t allowed = std::max(kSharedBytes, found == allowed_bytes.end() ? 0 : found->second);
  if (launch.blocks < 1 || launch.threads < 1 || launch.threads > kMostThreads)
    return refuse(std::to_string(launch.blocks) + " blocks of " + std::to_string(launch.threads) + " threads");
  if (launch.shared_bytes < 0 || static_cast<size_t>(launch.shared_bytes) > allowed)
    return refuse(std::to_string(launch.shared_bytes) + " bytes of dynamic shared memory, of which " +
                  std::to_string(allowed) + " are allowed");
  std::optional<Order> order = wanted_order();
  if (!order) return refuse("FLASH_RWKV_SIMT_ORDER is neither forward nor reverse nor a number");

  gridDim = {static_cast<unsigned>(launch.blocks), 1, 1};
  blockDim = {static_cast<unsigned>(launch.threads), 1, 1};
  std::minstd_rand* const chance = order->chance ? &*order->chance : nullptr;
  std::vector<int64_t> blocks(launch.blocks);
  std::iota(blocks.begin(), blocks.end(), 0);
  if (order->reverse) std::reverse(blocks.begin(), blocks.end());
  if (chance != nullptr) std::shuffle(blocks.begin(), blocks.end(), *chance);
  Block running(launch, static_shared());
  block = &running;
  for (const int64_t index : blocks) {
    running.run(index, order->reverse, chance);
    if (!running.failure.empty()) return refuse("block " + std::to_string(index) + ": " + running.failure);
  }
  return true;
}

// --- What threads do -------------------------------------------------------------------------------------------------

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
