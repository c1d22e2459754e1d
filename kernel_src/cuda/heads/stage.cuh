// A few tokens of one head on their way from global to shared memory, as fp32 and with the decay worked out.
//
// fetch() puts the loads in flight and returns; commit(), called when the tokens before these have been dealt with,
// converts what came and stores it. So the loads take their time behind the arithmetic.
#pragma once

#include "cuda/heads/decay.cuh"
#include "cuda/heads/in_flight.cuh"
#include "cuda/heads/vectors.cuh"

namespace flash_rwkv::cuda {

// Tokens that are staged, and dealt with, together.
constexpr int kStageTokens = 4;

// One vector [N] a token of a head, from the first token of a sequence on.
struct __align__(16) TokenRows {
  const char* data;      // nullptr: zeros
  uint32_t token_bytes;  // from token to token

  __device__ __forceinline__ const char* at(int token) const {
    return data + static_cast<uint64_t>(static_cast<uint32_t>(token)) * token_bytes;
  }
};

inline __host__ __device__ int bytes_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

__device__ __forceinline__ TokenRows token_rows(const View& view, int64_t batch, int64_t begin, int64_t head) {
  if (view.data == nullptr) return {nullptr, 0};
  const int64_t bytes = bytes_of(view.dtype);
  const int64_t first = batch * view.stride[0] + begin * view.stride[1] + head * view.stride[2];
  return {static_cast<const char*>(view.data) + first * bytes, static_cast<uint32_t>(view.stride[1] * bytes)};
}

// kVectors vectors of dtype T and of up to kWidth columns, shared out to kThreads threads; from the last thread on
// where kFromLast, so that several of these burden all threads alike.
template <class T, int kVectors, int kWidth, int kThreads, bool kFromLast = false>
class VectorLoads {
 private:
  static constexpr int kPiece = 8;  // elements that a thread loads at a time; head sizes are multiples of it
  static constexpr int kPieces = kWidth / kPiece;
  static constexpr int kSlots = (kVectors * kStageTokens * kPieces + kThreads - 1) / kThreads;
  static constexpr int kWords = kPiece * sizeof(T) / sizeof(uint4);
  static constexpr int kAll = kVectors * kStageTokens * kPieces;
  using Words = InFlight<uint4, kSlots * kWords, kAll * kWords>;

 public:
  static constexpr int kSharedBytes = Words::kSharedBytes;

  // rows: in shared memory, where they cost no registers. shared: of kSharedBytes.
  __device__ __forceinline__ VectorLoads(const TokenRows* rows, int size, char* shared)
      : rows_(rows), size_(size), words_(shared) {}

  // Tokens first … first + kStageTokens - 1 of the first `vectors` vectors; zeros from token `length` on. `skip`: bytes
  // that lie between the tokens before these besides themselves.
  __device__ __forceinline__ void fetch(int first, int length, int vectors, int64_t skip = 0) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (vector(s) >= vectors) continue;
      const TokenRows rows = rows_[vector(s)];
      const int column = piece(s) % kPieces * kPiece;
      const bool wanted = rows.data != nullptr && column < size_ && first + token(s) < length;
      const char* from = rows.at(first + token(s)) + (skip + column * int{sizeof(T)});
#pragma unroll
      for (int i = 0; i < kWords; ++i)
        words_.fetch(s * kWords + i, i * kAll + piece(s), reinterpret_cast<const uint4*>(from) + i, wanted);
    }
  }

  // `to`: the first of these vectors in shared memory, in a token of kTokenFloats floats. wait_for_loads() comes before.
  template <int kTokenFloats>
  __device__ __forceinline__ void commit(float* to, int vectors) const {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (vector(s) >= vectors) continue;
      float* const out = to + token(s) * kTokenFloats + vector(s) * kWidth + piece(s) % kPieces * kPiece;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // Lanes four apart would meet in the same bank.
        const int half = i ^ (static_cast<int>(threadIdx.x) >> 2 & 1);
        float x[4];
        four(s, half).unpack(x);
        *reinterpret_cast<float4*>(out + 4 * half) = make_float4(x[0], x[1], x[2], x[3]);
      }
    }
  }

 private:
  __device__ static __forceinline__ int piece(int slot) {
    const int thread = static_cast<int>(threadIdx.x);
    return (kFromLast ? kThreads - 1 - thread : thread) + slot * kThreads;
  }
  __device__ static __forceinline__ int token(int slot) { return piece(slot) / kPieces % kStageTokens; }
  __device__ static __forceinline__ int vector(int slot) { return piece(slot) / (kStageTokens * kPieces); }

  __device__ __forceinline__ Four<T> four(int slot, int half) const {
    if constexpr (sizeof(T) == 4) {
      return {words_.get(2 * slot + half, half * kAll + piece(slot))};
    } else {
      const uint4 word = words_.get(slot, piece(slot));
      return {make_uint2(half == 0 ? word.x : word.z, half == 0 ? word.y : word.w)};
    }
  }

  const TokenRows* rows_;
  int size_;
  Words words_;
};

// Retentions of w; those of tokens that do not exist keep the state as it is. Derivatives go kDerivatives floats behind them,
// if that is not 0.
template <int kDerivatives, int kCount>
__device__ __forceinline__ void store_decays(const float (&w)[kCount], bool exist, Decay form, float* to) {
  DecayValue decay[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) decay[i] = {kKeepAll, 0.0f};
  if (exist) for_each_decay(w, form, [&](int i, DecayValue value) { decay[i] = value; });
#pragma unroll
  for (int i = 0; i < kCount; i += 2) {
    store_pair(to + i, decay[i].retention, decay[i + 1].retention);
    if constexpr (kDerivatives > 0) store_pair(to + kDerivatives + i, decay[i].derivative, decay[i + 1].derivative);
  }
}

// The decay, of fp32 or the dtype T of the other vectors, shared out evenly, because an exponential costs more than a
// load.
template <class T, int kWidth, int kThreads>
class DecayLoads {
 private:
  static constexpr int kPiece = kStageTokens * kWidth > 2 * kThreads ? 4 : 2;
  static constexpr int kPieces = kWidth / kPiece;
  static constexpr int kSlots = (kStageTokens * kPieces + kThreads - 1) / kThreads;
  // Words of the narrower dtype; one of fp32 takes two.
  using Word = Run<kPiece * 2>;
  static constexpr int kAll = kStageTokens * kPieces;
  using Words = InFlight<typename Word::type, 2 * kSlots, 2 * kAll>;

 public:
  static constexpr int kSharedBytes = Words::kSharedBytes;

  // rows: in shared memory.
  __device__ __forceinline__ DecayLoads(const TokenRows* rows, bool is_float, Decay form, int size, char* shared)
      : rows_(rows), is_float_(is_float), form_(form), size_(size), words_(shared) {}

  __device__ __forceinline__ void fetch(int first, int length) {
    const TokenRows rows = *rows_;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (token(s) >= kStageTokens) continue;
      const int column = piece(s) % kPieces * kPiece;
      valid_[s] = column < size_ && first + token(s) < length;
      const char* bytes =
          rows.data + ((first + token(s)) * rows.token_bytes + column * (is_float_ ? 4 : int{sizeof(T)}));
      const auto* from = reinterpret_cast<const typename Word::type*>(bytes);
      words_.fetch(2 * s, piece(s), from, valid_[s]);
      if (is_float_) words_.fetch(2 * s + 1, kAll + piece(s), from + 1, valid_[s]);
    }
  }

  // kDerivatives: those of the decays by w go behind the decays.
  template <int kTokenFloats, bool kDerivatives = false>
  __device__ __forceinline__ void commit(float* to) const {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (token(s) >= kStageTokens) continue;
      float w[kPiece];
      unpack(s, w);
      store_decays<kDerivatives ? kWidth : 0>(w, valid_[s], form_,
                                              to + token(s) * kTokenFloats + piece(s) % kPieces * kPiece);
    }
  }

 private:
  __device__ static __forceinline__ int piece(int slot) { return static_cast<int>(threadIdx.x) + slot * kThreads; }
  __device__ static __forceinline__ int token(int slot) { return piece(slot) / kPieces; }

  __device__ __forceinline__ typename Word::type word(int slot, int i) const {
    return words_.get(2 * slot + i, i * kAll + piece(slot));
  }

  __device__ __forceinline__ void unpack(int slot, float (&w)[kPiece]) const {
    if constexpr (sizeof(T) == 4) {
      Word::unpack_floats(word(slot, 0), word(slot, 1), w);
    } else {
      if (is_float_) Word::unpack_floats(word(slot, 0), word(slot, 1), w);
      else Word::template unpack<T>(word(slot, 0), w);
    }
  }

  const TokenRows* rows_;
  bool is_float_;
  Decay form_;
  int size_;
  Words words_;
  bool valid_[kSlots];
};

}  // namespace flash_rwkv::cuda
