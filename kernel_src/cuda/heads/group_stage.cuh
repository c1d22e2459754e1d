// Tokens on their way to shared memory in the backward pass: a group at a time, or all of a checkpoint at once.
//
// fetch() puts loads in flight, and commit() makes of them what tokens() says where to find. Rows of what is read: the vectors
// of Op, what forward has saved, then w.
#pragma once

#include "cuda/heads/group_tokens.cuh"
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
  static constexpr int kGroupFloats = kGroup * kTokenStride<Op, Shape>;  // for one as fp32
  using Tokens = GroupTokens<Op, float, kTokenStride<Op, Shape>, Shape::kWidth>;

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

  // group: of kGroupFloats.
  __device__ __forceinline__ void commit(float* group, int, int count) const {
    constexpr int kToken = kTokenStride<Op, Shape>;
    wait_for_loads();
    vectors_.template commit<kToken>(group, count);
    if constexpr (Op::kSavedVectors > 0) saved_.template commit<kToken>(group + Op::kVectors * Shape::kWidth, 1);
    decays_.template commit<kToken, true>(group + Op::kDecay * Shape::kWidth);
  }

  __device__ __forceinline__ Tokens tokens(const float* group, int) const {
    return {group, group + Op::kVectors * Shape::kWidth};
  }

 private:
  const StageSource source_;
  Vectors vectors_;
  Saved saved_;
  Decays decays_;
};

// All tokens of a checkpoint lie in shared memory as they came, besides their decays, until those before them are asked for.
template <class Op, class T, class Shape>
class BlockStage {
  static constexpr int kTokens = static_cast<int>(kCudaCheckpointTokens);
  static constexpr int kWidth = Shape::kWidth;
  static constexpr int kVector = kTokens * kWidth;
  static constexpr int kVectorBytes = kVector * static_cast<int>(sizeof(T));
  static constexpr int kFloatBytes = kVector * static_cast<int>(sizeof(float));
  static_assert(Op::kSavedVectors == 1);

 public:
  static constexpr int kSharedBytes = Op::kVectors * kVectorBytes + 4 * kFloatBytes;
  static constexpr bool kWholeBlocks = true;
  static constexpr int kGroupFloats = 0;
  using Tokens = GroupTokens<Op, T, kWidth, kVector>;

  __device__ __forceinline__ BlockStage(const StageSource& source, char* shared) : source_(source), shared_(shared) {}

  // Of checkpoint `block`.
  __device__ __forceinline__ void fetch(int block, int, int) const {
    const int first = block * kTokens;
#pragma unroll
    for (int i = 0; i < Op::kVectors; ++i) copy<sizeof(T)>(source_.rows[i], first, 0, i * kVectorBytes);
    copy<sizeof(float)>(source_.rows[Op::kVectors], first, block * source_.skip_of_block, kSaved);
    const TokenRows w = source_.rows[Op::kVectors + 1];
    if (source_.wide_decay) copy<sizeof(float)>(w, first, 0, kRawDecays);
    else copy<sizeof(T)>(w, first, 0, kRawDecays);
  }

  // Decays, four columns a thread and turn.
  __device__ __forceinline__ void commit(float*, int block, int) const {
    wait_for_loads();
    __syncthreads();
    float* const decays = reinterpret_cast<float*>(shared_ + kSaved) + kVector;
#pragma unroll 1
    for (int at = 4 * static_cast<int>(threadIdx.x); at < kVector; at += 4 * Shape::kThreads) {
      const bool exists = at % kWidth < source_.size && block * kTokens + at / kWidth < source_.length;
      float w[4];
      if (source_.wide_decay) elements_of(reinterpret_cast<const float*>(shared_ + kRawDecays) + at, w);
      else load_four(reinterpret_cast<const T*>(shared_ + kRawDecays) + at).unpack(w);
      store_decays<kVector>(w, exists, source_.form, decays + at);
    }
  }

  __device__ __forceinline__ Tokens tokens(const float*, int group) const {
    const int first = group * kGroup * kWidth;
    return {reinterpret_cast<const T*>(shared_) + first, reinterpret_cast<const float*>(shared_ + kSaved) + first};
  }

 private:
  static constexpr int kSaved = Op::kVectors * kVectorBytes;  // decays and derivatives come behind
  static constexpr int kRawDecays = kSaved + 3 * kFloatBytes;

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
