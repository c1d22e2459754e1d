// The walk that the matrix-state recurrences share, forward: heads, then blocks of tokens, then tiles of rows.
#pragma once

#include "blocks.h"

namespace flash_rwkv::cpu::FLASH_RWKV_ISA {

// Op gives Params, Scratch (with state[NP * NP], rows, v and y), prepare (once a head), load (inputs of a
// block), look_ahead, tile and finish (once a block).
template <class Op, class T, int NP>
struct ForwardWalk {
  using Params = typename Op::Params;
  using Scratch = typename Op::Scratch;

  // Where the rows of this head's state are kept: in the final state itself if its layout allows, else in scratch.
  static T* home_of_rows(const Params& p, int64_t slot, int64_t head, Scratch& s) {
    constexpr DType kCompute = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;
    const View& state = p.final_state;
    const bool direct = p.head_size == NP && state.dtype == kCompute && state.stride[3] == 1 && state.stride[2] == NP;
    return direct ? static_cast<T*>(state.data) + slot * state.stride[0] + head * state.stride[1] : s.state;
  }

  static void item(const Params& p, HeadItem head, Scratch& s) {
    const int64_t size = p.head_size;
    const int64_t begin = p.sequences.begin(head.sequence);
    const int64_t length = p.sequences.length(head.sequence);
    const int64_t slot = p.slots ? p.slots[head.sequence] : head.sequence;
    const int64_t first = head.first_group * kGroupRows;
    const int64_t bound = head.last_group * kGroupRows;
    const int64_t last = bound < size ? bound : size;
    s.rows = home_of_rows(p, slot, head.head, s);
    const bool in_place = s.rows != s.state && p.state.data == p.final_state.data;
    if (!in_place) load_state<NP>(p.state, slot, head.head, first, bound < NP ? bound : NP, size, s.rows);
    Op::prepare(p, head.head, s);
    int64_t checkpoint = p.sequences.first_checkpoint(head.sequence);
    for (int64_t t = 0; t < length; t += kForwardBlock) {
      const int n = static_cast<int>(length - t < kForwardBlock ? length - t : kForwardBlock);
      const Place at = {p.sequences.batch(head.sequence), begin + t, head.head};
      if (p.checkpoints && t % kCheckpointTokens == 0) {
        T* saved = static_cast<T*>(p.checkpoints) + (checkpoint++ * p.num_heads + head.head) * size * size;
        for (int64_t i = first; i < last; ++i) copy_row(s.rows + i * NP, saved + i * size, size);
      }
      Op::load(p, at, n, s);
      Ahead ahead;
      if (t + kForwardBlock < length) Op::look_ahead(p, {at.batch, at.token + kForwardBlock, at.head}, ahead);
      constexpr int kRows = Tile<T, NP>::kRows;
      for (int64_t row = first; row < last; row += kRows)
        Op::tile(
            s, row, n,
            ahead.share<kForwardAhead>(static_cast<int>(row - first) / kRows, static_cast<int>(last - first) / kRows));
      Op::finish(s, n);
      store_tokens<NP>(p.y, at, n, first, last, s.y);
    }
    if (s.rows == s.state) store_state<NP>(p.final_state, slot, head.head, first, last, size, s.state);
  }

  static void run(const Params& p, const Workers& workers) {
    const Split split(p.sequences, p.num_heads, p.head_size, workers.threads);
    for_each_item<Scratch>(workers, split.items,
                           [&](int64_t index, Scratch& scratch) { item(p, split.item(index), scratch); });
  }
};

}  // namespace flash_rwkv::cpu::FLASH_RWKV_ISA
