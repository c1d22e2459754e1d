// A few tokens of one head on their way from global to shared memory, as fp32 and with the decay worked out.
//
// fetch() puts the loads in flight and returns; commit(), called when the tokens before these have been dealt with,
// converts what came and stores it. So the loads take their time behind the arithmetic.
#pragma once

#include "cuda/heads/decay.cuh"
#include "cuda/heads/vectors.cuh"

namespace flash_rwkv::cuda {

// Tokens that are staged, and dealt with, together.
constexpr int kStageTokens = 4;

// One vector [N] a token of a head, from the first token of a sequence on.
struct TokenRows {
  const char* data = nullptr;  // nullptr: zeros
  int64_t token_bytes = 0;     // from token to token
};

inline __host__ __device__ int bytes_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

__device__ __forceinline__ TokenRows token_rows(const View& view, int64_t batch, int64_t begin, int64_t head) {
  if (view.data == nullptr) return {};
  const int64_t bytes = bytes_of(view.dtype);
  const int64_t first = batch * view.stride[0] + begin * view.stride[1] + head * view.stride[2];
  return {static_cast<const char*>(view.data) + first * bytes, view.stride[1] * bytes};
}

// kVectors vectors of dtype T and of up to kWidth columns, shared out to kThreads threads.
template <class T, int kVectors, int kWidth, int kThreads>
class VectorLoads {
 public:
  __device__ __forceinline__ VectorLoads(const TokenRows (&rows)[kVectors], int size) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int column = piece(s) % kPieces * kPiece;
      TokenRows mine;
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        if (vector(s) == i) mine = rows[i];
      }
      token_bytes_[s] = mine.token_bytes;
      const bool exists = mine.data != nullptr && column < size;
      from_[s] = exists ? mine.data + token(s) * mine.token_bytes + column * sizeof(T) : nullptr;
    }
  }

  // Tokens first … first + kStageTokens - 1 of the first `vectors` vectors; zeros from token `length` on. `skip`: bytes
  // that lie between the tokens before these besides themselves.
  __device__ __forceinline__ void fetch(int first, int length, int vectors, int64_t skip = 0) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const bool wanted = from_[s] != nullptr && vector(s) < vectors && first + token(s) < length;
#pragma unroll
      for (int i = 0; i < kRaws; ++i) raw_[s][i] = make_uint4(0, 0, 0, 0);
      if (!wanted) continue;
      const uint4* from = reinterpret_cast<const uint4*>(from_[s] + first * token_bytes_[s] + skip);
#pragma unroll
      for (int i = 0; i < kRaws; ++i) raw_[s][i] = __ldg(from + i);
    }
  }

  // `to`: the first of these vectors in shared memory, in a token of kTokenFloats floats.
  template <int kTokenFloats>
  __device__ __forceinline__ void commit(float* to, int vectors) const {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (vector(s) >= vectors) continue;
      float4* out =
          reinterpret_cast<float4*>(to + token(s) * kTokenFloats + vector(s) * kWidth + piece(s) % kPieces * kPiece);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float x[4];
        four(s, half).unpack(x);
        out[half] = make_float4(x[0], x[1], x[2], x[3]);
      }
    }
  }

 private:
  static constexpr int kPiece = 8;  // elements that a thread loads at a time; head sizes are multiples of it
  static constexpr int kPieces = kWidth / kPiece;
  static constexpr int kSlots = (kVectors * kStageTokens * kPieces + kThreads - 1) / kThreads;
  static constexpr int kRaws = kPiece * sizeof(T) / sizeof(uint4);

  __device__ static __forceinline__ int piece(int slot) { return static_cast<int>(threadIdx.x) + slot * kThreads; }
  __device__ static __forceinline__ int token(int slot) { return piece(slot) / kPieces % kStageTokens; }
  __device__ static __forceinline__ int vector(int slot) { return piece(slot) / (kStageTokens * kPieces); }

  __device__ __forceinline__ Four<T> four(int slot, int half) const {
    if constexpr (sizeof(T) == 4) return {raw_[slot][half]};
    else if (half == 0) return {make_uint2(raw_[slot][0].x, raw_[slot][0].y)};
    else return {make_uint2(raw_[slot][0].z, raw_[slot][0].w)};
  }

  const char* from_[kSlots];
  int64_t token_bytes_[kSlots];
  uint4 raw_[kSlots][kRaws];
};

// The decay, of fp32 or the dtype T of the other vectors. Fewer columns a thread, because an exponential costs more than
// a load.
template <class T, int kWidth, int kThreads>
class DecayLoads {
 public:
  __device__ __forceinline__ DecayLoads(const TokenRows& rows, bool is_float, Decay form, int size)
      : token_bytes_(rows.token_bytes), is_float_(is_float), form_(form) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int column = piece(s) % kPieces * 4;
      const bool exists = column < size && token(s) < kStageTokens;
      from_[s] = exists ? rows.data + token(s) * token_bytes_ + column * (is_float ? 4 : sizeof(T)) : nullptr;
    }
  }

  __device__ __forceinline__ void fetch(int first, int length) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      valid_[s] = from_[s] != nullptr && first + token(s) < length;
      if (!valid_[s]) continue;
      // Two loads to registers of their own: one of either width to the same would have to wait for the other.
      const uint2* from = reinterpret_cast<const uint2*>(from_[s] + first * token_bytes_);
      low_[s] = __ldg(from);
      if (is_float_) high_[s] = __ldg(from + 1);
    }
  }

  template <int kTokenFloats>
  __device__ __forceinline__ void commit(float* to) const {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (token(s) >= kStageTokens) continue;
      float4 out = make_float4(kKeepAll, kKeepAll, kKeepAll, kKeepAll);
      if (valid_[s]) {
        float w[4], kept[4];
        unpack(s, w);
        retentions(w, form_, kept);
        out = make_float4(kept[0], kept[1], kept[2], kept[3]);
      }
      *reinterpret_cast<float4*>(to + token(s) * kTokenFloats + piece(s) % kPieces * 4) = out;
    }
  }

 private:
  static constexpr int kPieces = kWidth / 4;
  static constexpr int kSlots = (kStageTokens * kPieces + kThreads - 1) / kThreads;

  __device__ static __forceinline__ int piece(int slot) { return static_cast<int>(threadIdx.x) + slot * kThreads; }
  __device__ static __forceinline__ int token(int slot) { return piece(slot) / kPieces; }

  __device__ __forceinline__ void unpack(int slot, float (&w)[4]) const {
    const Four<float> as_float = {make_uint4(low_[slot].x, low_[slot].y, high_[slot].x, high_[slot].y)};
    if constexpr (sizeof(T) == 4) {
      as_float.unpack(w);
    } else {
      if (is_float_) as_float.unpack(w);
      else Four<T>{low_[slot]}.unpack(w);
    }
  }

  const char* from_[kSlots];
  int64_t token_bytes_;
  bool is_float_;
  Decay form_;
  uint2 low_[kSlots], high_[kSlots];
  bool valid_[kSlots];
};

}  // namespace flash_rwkv::cuda
