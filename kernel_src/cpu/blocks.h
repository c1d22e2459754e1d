// How the work of one call is cut: heads, groups of value rows, blocks of tokens, tiles of rows in registers.
#pragma once

#include "convert.h"
#include "decay.h"
#include "kernels.h"

namespace flash_rwkv::cpu::FLASH_RWKV_ISA {

// Tokens between two saved states, whose inputs backward holds at once.
constexpr int kBlock = static_cast<int>(kCheckpointTokens);

// Tokens whose inputs all tiles read in turn: few enough to stay in the first-level cache.
constexpr int kForwardBlock = 16;

// Tokens of a block that backward takes at a time, with their states and sums in the first-level cache. Where a tile
// overflows the registers (with less than 2 KiB of them) its arithmetic weighs more than the second-level cache, and
// longer windows repeat less.
constexpr int kWindow = Vec<float>::kRegisters * Vec<float>::kLanes >= 512 ? 8 : 32;
static_assert(kBlock % kForwardBlock == 0 && kBlock % kWindow == 0);

// Value rows that one worker may take alone. Sums over rows are formed a group at a time and the groups added in
// order, so they do not depend on which workers took which groups.
constexpr int kGroupRows = 16;

struct HeadItem {
  int64_t sequence, head;
  int first_group, last_group;
};

// Cuts sequences × heads into items; each head into its groups of rows where heads alone would leave threads idle.
struct Split {
  int64_t heads;
  int groups;    // groups of value rows in a head
  int per_head;  // items a head is cut into: 1 or groups
  int64_t items;

  Split(const Sequences& sequences, int64_t num_heads, int64_t head_size, int threads)
      : heads(num_heads), groups(static_cast<int>((head_size + kGroupRows - 1) / kGroupRows)) {
    const bool plenty = threads == 1 || sequences.count * num_heads >= 3 * static_cast<int64_t>(threads);
    per_head = plenty ? 1 : groups;
    items = sequences.count * num_heads * per_head;
  }

  HeadItem item(int64_t index) const {
    const int part = static_cast<int>(index % per_head);
    const int64_t head = index / per_head;
    return {head / heads, head % heads, per_head == 1 ? 0 : part, per_head == 1 ? groups : part + 1};
  }
};

// Runs f(item index, Scratch&) on the workers.
template <class Scratch, class F>
void for_each_item(const Workers& workers, int64_t items, const F& f) {
  workers.run(
      workers.threads, items, sizeof(Scratch),
      [](void* context, int64_t item, void* scratch) {
        (*static_cast<const F*>(context))(item, *static_cast<Scratch*>(scratch));
      },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// Rows of NP elements that one loop over tokens carries: as many as half the registers hold, but at least four, even
// if some then live in the first-level cache. With fewer, the sums over a row and the loads of keys weigh too much
// (measured with AVX2, N = 64: wkv6 forward 13.8 ms with one row, 9.0 with two, 8.5 with four).
template <class T, int NP>
struct Tile {
  static constexpr int kLanes = Vec<T>::kLanes;
  static constexpr int kVectors = NP / kLanes;
  static constexpr int kFit = Vec<T>::kRegisters / 2 / kVectors;
  static constexpr int kRows = kFit >= 8 ? 8 : 4;

  Vec<T> x[kRows][kVectors];

  FLASH_RWKV_INLINE void load(const T* rows) {
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 16
      for (int c = 0; c < kVectors; ++c) x[i][c] = Vec<T>::load(rows + i * NP + c * kLanes);
  }

  FLASH_RWKV_INLINE void store(T* rows) const {
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 16
      for (int c = 0; c < kVectors; ++c) x[i][c].store(rows + i * NP + c * kLanes);
  }
};

// Lines that each tile fetches a token: sixteen tiles of a head then cover all rows.
constexpr int kForwardAhead = 2;
constexpr int kBackwardAhead = 4;

// Rows of the next block, fetched a line at a time while this block computes. A token's row of one head is a few
// lines in a page of its own, out of reach of the processor's own prefetcher.
class Ahead {
 public:
  // Views are those the next block reads or writes at `at`.
  void add(const View& view, Place at, int64_t n) {
    if (view.data == nullptr) return;
    const int64_t bytes = element_bytes(view.dtype);
    const char* row = static_cast<const char*>(view.data) +
                      (at.batch * view.stride[0] + at.token * view.stride[1] + at.head * view.stride[2]) * bytes;
    for (int64_t byte = 0; byte < n * view.stride[3] * bytes && count_ < kMost; byte += 64) {
      line_[count_] = row + byte;
      step_[count_++] = view.stride[1] * bytes;
    }
  }

  // What one tile fetches, at most kLines a token: lines first, first + stride, … of the row, for each of its tokens.
  template <int kLines>
  struct Share {
    const char* line[kLines];
    int64_t step[kLines];

    FLASH_RWKV_INLINE void fetch(int t) const {
      for (int i = 0; i < kLines; ++i) __builtin_prefetch(line[i] + t * step[i]);
    }
  };

  template <int kLines>
  Share<kLines> share(int tile, int tiles) const {
    Share<kLines> share;
    for (int i = 0; i < kLines; ++i) {
      // Where there is no line left, one that is at hand: an address without a page would cost a walk every time.
      const int index = tile + i * tiles;
      const bool wanted = index < count_;
      share.line[i] = wanted ? line_[index] : reinterpret_cast<const char*>(this);
      share.step[i] = wanted ? step_[index] : 0;
    }
    return share;
  }

 private:
  static constexpr int kMost = 64;
  const char* line_[kMost];
  int64_t step_[kMost];
  int count_ = 0;
};

template <class T, int R>
FLASH_RWKV_INLINE void clear(Vec<T> (&rows)[R]) {
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) rows[i] = Vec<T>::fill(T(0));
}

// sum[i] += part[i]
template <class T>
FLASH_RWKV_INLINE void add_to(T* sum, const T* part, int64_t count) {
  for (int64_t i = 0; i < count; i += Vec<T>::kLanes) (Vec<T>::load(sum + i) + Vec<T>::load(part + i)).store(sum + i);
}

// sum[0, NP) += x · scale
template <int NP, class T>
FLASH_RWKV_INLINE void add_scaled(T* sum, const T* x, T scale) {
  const Vec<T> factor = Vec<T>::fill(scale);
#pragma GCC unroll 16
  for (int i = 0; i < NP; i += Vec<T>::kLanes) fma(Vec<T>::load(x + i), factor, Vec<T>::load(sum + i)).store(sum + i);
}

// a[i] *= b[i]
template <class T>
FLASH_RWKV_INLINE void multiply_by(T* a, const T* b, int64_t count) {
  for (int64_t i = 0; i < count; i += Vec<T>::kLanes) (Vec<T>::load(a + i) * Vec<T>::load(b + i)).store(a + i);
}

// Op<T, NP>::run(args...) for the dtype's compute type and the head size padded to 16, 32, 64, 128 or 256.
template <template <class, int> class Op, class... Args>
void with_padded_size(DType dtype, int64_t head_size, const Args&... args) {
  const auto run = [&](auto sized) { decltype(sized)::run(args...); };
  const auto typed = [&](auto narrow, auto wide) { dtype == DType::kFloat64 ? run(wide) : run(narrow); };
  if (head_size <= 16) return typed(Op<float, 16>(), Op<double, 16>());
  if (head_size <= 32) return typed(Op<float, 32>(), Op<double, 32>());
  if (head_size <= 64) return typed(Op<float, 64>(), Op<double, 64>());
  if (head_size <= 128) return typed(Op<float, 128>(), Op<double, 128>());
  return typed(Op<float, 256>(), Op<double, 256>());
}

}  // namespace flash_rwkv::cpu::FLASH_RWKV_ISA
