// The walk that the matrix-state recurrences share, backward: blocks of tokens from the last to the first, and windows
// of a few tokens from a block's last to its first. The states before each window are computed again from the block's
// checkpoint, and those before each token from the window's, so nothing is ever divided by a decay.
//
// Gradients of key-side inputs (r, k, d, a, b) are sums over value rows. They are formed for one group of rows at a
// time; the groups are added in order, by the worker that owns the head or, where a head's groups were dealt to
// several workers, in a second pass over the parts they left. Either way the bits are the same.
#pragma once

#include "blocks.h"

namespace flash_rwkv::cpu::FLASH_RWKV_ISA {

// What the walk needs of an Op's scratch. kKeys key-side gradients, kSums gradients summed over tokens as well.
template <class T, int NP, int kKeys, int kSums>
struct BackwardScratch {
  alignas(64) T v[kBlock * NP];
  T dy[kBlock * NP];
  T derivative[kBlock * NP];  // of the decay
  // Of one window:
  T dv[kWindow * NP];
  T part[kKeys][kWindow * NP];                         // key-side gradients of this group of rows
  T total[kKeys][kWindow * NP];                        // of all groups
  T history[(kWindow + 1) * Tile<T, NP>::kRows * NP];  // states of one tile before each token, and after the last
  T sums[NP / kGroupRows][kSums > 0 ? kSums : 1][NP];  // a group's sums over the tokens so far
  T states[kBlock / kWindow][NP * NP];                 // before each window; the first is the block's checkpoint
  T grad_state[NP * NP];                               // gradient of the state after the token at hand
};

// Op gives Params, Gradients, Scratch, kKeys, kSums, keys, prepare (once a head), load (inputs of a block),
// inputs_ahead, outputs_ahead, walk, tile and the finish_ steps: after a group of rows, after the rows of a window,
// after all groups of a window, after a sequence.
template <class Op, class T, int NP>
struct BackwardWalk {
  using Params = typename Op::Params;
  using Gradients = typename Op::Gradients;
  using Scratch = typename Op::Scratch;
  static constexpr int kKeys = Op::kKeys;
  static constexpr int kSums = Op::kSums;

  const Params& p;
  const Gradients& g;
  const Split split;
  T* parts;  // [B * T, H, groups, kKeys, NP] when heads are split, else nullptr
  T* sums;   // [S, H, groups, kSums, NP]

  T* parts_of(Place at) const {
    return parts + ((at.batch * p.sequences.tokens + at.token) * p.num_heads + at.head) * split.groups * kKeys * NP;
  }

  T* sums_of(int64_t sequence, int64_t head) const {
    return sums + (sequence * p.num_heads + head) * split.groups * kSums * NP;
  }

  void leave_part(const Scratch& s, Place at, int n, int group) const {
    T* out = parts_of(at) + group * kKeys * NP;
    for (int t = 0; t < n; ++t, out += p.num_heads * split.groups * kKeys * NP)
      for (int key = 0; key < Op::keys(p); ++key) copy_row(s.part[key] + t * NP, out + key * NP, NP);
  }

  void collect_parts(Scratch& s, Place at, int n) const {
    const T* in = parts_of(at);
    for (int t = 0; t < n; ++t, in += p.num_heads * split.groups * kKeys * NP)
      for (int key = 0; key < Op::keys(p); ++key) {
        copy_row(in + key * NP, s.total[key] + t * NP, NP);
        for (int group = 1; group < split.groups; ++group)
          add_to(s.total[key] + t * NP, in + (group * kKeys + key) * NP, NP);
      }
  }

  // A tile's state before one window to that before the next.
  static void advance(Scratch& s, int64_t row, int window) {
    Tile<T, NP> state;
    state.load(s.states[window] + row * NP);
    Op::template walk<false>(s, state, row, window * kWindow, kWindow);
    state.store(s.states[window + 1] + row * NP);
  }

  void group_of_window(Scratch& s, const Ahead& ahead, int group, int64_t last, int window, int n) const {
    constexpr int kTiles = kGroupRows / Tile<T, NP>::kRows;
    for (int key = 0; key < kKeys; ++key) fill_row(s.part[key], n * NP, T(0));
    for (int i = 0; i < kTiles; ++i) {
      const int index = group * kTiles + i;
      const int64_t row = static_cast<int64_t>(index) * Tile<T, NP>::kRows;
      if (row < last) Op::tile(s, row, window, n, ahead.share<kBackwardAhead>(index, split.groups * kTiles));
    }
    Op::finish_group(p, s, group, window * kWindow, n);
  }

  // `at` is the window's place, n its tokens.
  void window(Scratch& s, HeadItem head, Place at, int64_t last, int window, int n, const Ahead& ahead) const {
    const int64_t first = head.first_group * kGroupRows;
    for (int group = head.first_group; group < head.last_group; ++group) {
      group_of_window(s, ahead, group, last, window, n);
      if (parts) {
        leave_part(s, at, n, group);
        continue;
      }
      for (int key = 0; key < Op::keys(p); ++key) {
        if (group == 0) copy_row(s.part[key], s.total[key], n * NP);
        else add_to(s.total[key], s.part[key], n * NP);
      }
    }
    Op::finish_rows(s, window * kWindow, n);
    store_tokens<NP>(g.dv, at, n, first, last, s.dv);
    if (!parts) Op::finish_window(p, g, s, at, window * kWindow, n);
  }

  void block(Scratch& s, HeadItem head, Place at, int64_t begin, int64_t checkpoint, int n) const {
    const int64_t size = p.head_size;
    Op::load(p, at, n, s);
    load_tokens<NP>(p.v, at, n, size, s.v);
    load_tokens<NP>(g.grad_y, at, n, size, s.dy);
    const T* saved = static_cast<const T*>(p.checkpoints) + (checkpoint * p.num_heads + head.head) * size * size;
    const int64_t first = head.first_group * kGroupRows;
    const int64_t bound = head.last_group * kGroupRows;
    const int64_t last = bound < size ? bound : size;
    for (int64_t i = first; i < last; ++i) copy_row(saved + i * size, s.states[0] + i * NP, size);
    const int windows = (n + kWindow - 1) / kWindow;
    for (int index = 0; index + 1 < windows; ++index)
      for (int64_t row = first; row < last; row += Tile<T, NP>::kRows) advance(s, row, index);
    for (int index = windows - 1; index >= 0; --index) {
      const int64_t t = index * kWindow;
      Ahead ahead;
      const Place here = {at.batch, at.token + t, at.head};
      Op::outputs_ahead(g, here, p.head_size, ahead);
      if (at.token > begin) Op::inputs_ahead(p, g, {at.batch, here.token - kBlock, at.head}, ahead);
      window(s, head, here, last, index, static_cast<int>(n - t < kWindow ? n - t : kWindow), ahead);
    }
  }

  void item(HeadItem head, Scratch& s) const {
    const int64_t size = p.head_size;
    const int64_t begin = p.sequences.begin(head.sequence);
    const int64_t length = p.sequences.length(head.sequence);
    const int64_t first = head.first_group * kGroupRows;
    const int64_t bound = head.last_group * kGroupRows;
    // Rows and columns past the head size stay zero.
    fill_row(s.states[0], NP * NP, T(0));
    load_state<NP>(g.grad_final_state, head.sequence, head.head, first, bound < NP ? bound : NP, size, s.grad_state);
    fill_row(&s.sums[0][0][0], sizeof(s.sums) / sizeof(T), T(0));
    Op::prepare(p, head.head, s);
    const int64_t blocks = (length + kBlock - 1) / kBlock;
    for (int64_t index = blocks - 1; index >= 0; --index) {
      const int64_t t = index * kBlock;
      const int n = static_cast<int>(length - t < kBlock ? length - t : kBlock);
      block(s, head, {p.sequences.batch(head.sequence), begin + t, head.head}, begin,
            p.sequences.first_checkpoint(head.sequence) + index, n);
    }
    store_state<NP>(g.dstate, head.sequence, head.head, first, bound < size ? bound : size, size, s.grad_state);
    for (int group = head.first_group; group < head.last_group; ++group)
      copy_row(&s.sums[group][0][0], sums_of(head.sequence, head.head) + group * kSums * NP, kSums * NP);
  }

  // The second pass: add up what the groups left.
  void collect(int64_t sequence, int64_t head, Scratch& s) const {
    T* sum = sums_of(sequence, head);
    for (int group = 1; group < split.groups; ++group) add_to(sum, sum + group * kSums * NP, kSums * NP);
    Op::finish_sums(p, g, sequence, head, sum);
    if (!parts) return;
    const int64_t length = p.sequences.length(sequence);
    for (int64_t t = 0; t < length; t += kBlock) {
      const int n = static_cast<int>(length - t < kBlock ? length - t : kBlock);
      const Place at = {p.sequences.batch(sequence), p.sequences.begin(sequence) + t, head};
      Op::load(p, at, n, s);
      for (int w = 0; w < n; w += kWindow) {
        const Place here = {at.batch, at.token + w, head};
        const int count = n - w < kWindow ? n - w : kWindow;
        collect_parts(s, here, count);
        Op::finish_window(p, g, s, here, w, count);
      }
    }
  }

  static void run(const Params& p, const Gradients& g, const Workers& workers) {
    const Split split(p.sequences, p.num_heads, p.head_size, workers.threads);
    const bool in_parts = split.per_head > 1;
    const int64_t rows = p.sequences.cu_seqlens ? p.sequences.tokens : p.sequences.count * p.sequences.tokens;
    const int64_t head_parts = p.num_heads * split.groups * NP * static_cast<int64_t>(sizeof(T));
    const SharedBuffer parts(in_parts ? rows * head_parts * kKeys : 0);
    const SharedBuffer sums(p.sequences.count * head_parts * kSums);
    const BackwardWalk walk{p, g, split, in_parts ? static_cast<T*>(parts.data()) : nullptr,
                            static_cast<T*>(sums.data())};
    for_each_item<Scratch>(workers, split.items, [&](int64_t index, Scratch& s) { walk.item(split.item(index), s); });
    for_each_item<Scratch>(workers, p.sequences.count * p.num_heads, [&](int64_t index, Scratch& s) {
      walk.collect(index / p.num_heads, index % p.num_heads, s);
    });
  }
};

}  // namespace flash_rwkv::cpu::FLASH_RWKV_ISA
