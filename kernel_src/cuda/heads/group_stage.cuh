// Tokens on their way to shared memory in the backward pass: a group at a time, or all of a checkpoint at once.
//
// fetch() puts loads in flight, and commit() converts the tokens of a group. Rows of what is read: the vectors of Op, what
// forward has saved, then w.
#pragma once

#include "cuda/heads/group_vectors.cuh"
#include "cuda/heads/stage.cuh"

namespace flash_rwkv::cuda {

// What both know of a sequence.
struct StageSource {
  const TokenRows* rows;  // in shared memory, where they cost no registers
  bool wide_decay;        // w is fp32
  Decay form;
  int size, length;
  int64_t skip_of_block;  // bytes between what forward has saved of two checkpoints, besides that itself
};

// Every thread converts what it has asked for itself.
template <class Op, class T, class Shape>
class GroupStage {
  using Vectors = VectorLoads<T, Op::kVectors, Shape::kWidth, Shape::kThreads>;
  using Saved = VectorLoads<float, 1, Shape::kWidth, Shape::kThreads, true>;
  using Decays = DecayLoads<T, Shape::kWidth, Shape::kThreads>;
  static constexpr int kSavedBytes = Op::kSavedVectors > 0 ? Saved::kSharedBytes : 0;

 public:
  static constexpr int kSharedBytes = Vectors::kSharedBytes + kSavedBytes + Decays::kSharedBytes;
  static constexpr bool kWholeBlocks = false;

  __device__ __forceinline__ GroupStage(const StageSource& source, char* shared)
      : source_(source),
        vectors_(source.rows, source.size, shared),
        saved_(source.rows + Op::kVectors, source.size, shared + Vectors::kSharedBytes),
        decays_(source.rows + Op::kVectors + 1, source.wide_decay, source.form, source.size,
                shared + Vectors::kSharedBytes + kSavedBytes) {}

  // Group `group` of checkpoint `block`; the first `count` of the vectors.
  __device__ __forceinline__ void fetch(int block, int group, int count) {
    const int first = block * kCudaCheckpointTokens + group * kGroup;
    vectors_.fetch(first, source_.length, count);
    if constexpr (Op::kSavedVectors > 0) saved_.fetch(first, source_.length, 1, block * source_.skip_of_block);
    decays_.fetch(first, source_.length);
  }

  __device__ __forceinline__ void commit(float* tokens, int, int, int count) const {
    constexpr int kToken = kTokenStride<Op, Shape>;
    wait_for_loads();
    vectors_.template commit<kToken>(tokens, count);
    if constexpr (Op::kSavedVectors > 0) saved_.template commit<kToken>(tokens + Op::kVectors * Shape::kWidth, 1);
    decays_.template commit<kToken, true>(tokens + Op::kDecay * Shape::kWidth);
  }

 private:
  const StageSource source_;
  Vectors vectors_;
  Saved saved_;
  Decays decays_;
};

// All tokens of a checkpoint lie in shared memory as they came, until those before them are asked for.
template <class Op, class T, class Shape>
class BlockStage {
  static constexpr int kTokens = static_cast<int>(kCudaCheckpointTokens);
  static constexpr int kWidth = Shape::kWidth;
  static constexpr int kVectorBytes = kTokens * kWidth * static_cast<int>(sizeof(T));
  static constexpr int kFloatBytes = kTokens * kWidth * static_cast<int>(sizeof(float));
  static_assert(Op::kSavedVectors == 1);

 public:
  static constexpr int kSharedBytes = Op::kVectors * kVectorBytes + 2 * kFloatBytes;
  static constexpr bool kWholeBlocks = true;

  __device__ __forceinline__ BlockStage(const StageSource& source, char* shared) : source_(source), shared_(shared) {}

  __device__ __forceinline__ void fetch(int block, int, int) const {
    const int first = block * kTokens;
#pragma unroll
    for (int i = 0; i < Op::kVectors; ++i) copy<sizeof(T)>(source_.rows[i], first, 0, i * kVectorBytes);
    copy<sizeof(float)>(source_.rows[Op::kVectors], first, block * source_.skip_of_block, kSaved);
    const TokenRows w = source_.rows[Op::kVectors + 1];
    if (source_.wide_decay) copy<sizeof(float)>(w, first, 0, kDecays);
    else copy<sizeof(T)>(w, first, 0, kDecays);
  }

  // All threads have waited for their loads, and then for each other.
  __device__ __forceinline__ void commit(float* tokens, int block, int group, int count) const {
    constexpr int kToken = kTokenStride<Op, Shape>;
    wait_for_loads();
    // --- Vectors, four elements of one token a thread: half of the block one vector, half the next. What forward has
    // saved comes behind them.
    constexpr int kPieces = kWidth / 4;
    static_assert(2 * kGroup * kPieces == Shape::kThreads);
    const int half = static_cast<int>(threadIdx.x) / (kGroup * kPieces);
    const int token = static_cast<int>(threadIdx.x) / kPieces % kGroup, column = threadIdx.x % kPieces * 4;
    const int at = (group * kGroup + token) * kWidth + column;
    float* const to = tokens + token * kToken + column;
#pragma unroll
    for (int first = 0; first < Op::kVectors; first += 2) {
      if (first + half < count) {
        const auto* const from = reinterpret_cast<const T*>(shared_ + (first + half) * kVectorBytes);
        convert(from + at, to + (first + half) * kWidth);
      }
    }
    if (half == count % 2) convert(reinterpret_cast<const float*>(shared_ + kSaved) + at, to + Op::kVectors * kWidth);
    // --- Decays, two columns a thread
    share_out<kGroup * kWidth / 2, Shape::kThreads>([&](int unit) {
      const int token = unit / (kWidth / 2), column = unit % (kWidth / 2) * 2;
      const bool exists = column < source_.size && block * kTokens + group * kGroup + token < source_.length;
      const int at = (group * kGroup + token) * kWidth + column;
      float w[2];
      if (source_.wide_decay) elements_of(reinterpret_cast<const float*>(shared_ + kDecays) + at, w);
      else load_pair(reinterpret_cast<const T*>(shared_ + kDecays) + at, w);
      store_decays<kWidth>(w, exists, source_.form, tokens + token * kToken + Op::kDecay * kWidth + column);
    });
  }

 private:
  static constexpr int kSaved = Op::kVectors * kVectorBytes;
  static constexpr int kDecays = kSaved + kFloatBytes;

  template <class Element>
  __device__ __forceinline__ static void convert(const Element* from, float* to) {
    float x[4];
    load_four(from).unpack(x);
    *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
  }

  // One vector, of elements of kBytes bytes. skip: bytes between the tokens before these besides themselves.
  template <int kBytes>
  __device__ __forceinline__ void copy(const TokenRows& rows, int first, int64_t skip, int to) const {
    constexpr int kPieces = kWidth * kBytes / 16;
    SharedWords<uint4> words(shared_ + to);
    share_out<kTokens * kPieces, Shape::kThreads>([&](int i) {
      const int token = first + i / kPieces, offset = i % kPieces * 16;
      const bool exists = rows.data != nullptr && offset < source_.size * kBytes && token < source_.length;
      words.fetch(i, reinterpret_cast<const uint4*>(rows.at(token) + (skip + offset)), exists);
    });
  }

  const StageSource source_;
  char* const shared_;
};

}  // namespace flash_rwkv::cuda
