// A few tokens of one head on their way from global to shared memory, as fp32 and with the decay worked out.
//
// fetch() puts the loads in flight and returns; commit(), called when the tokens before these have been dealt with,
// converts what came and stores it. So the loads take their time behind the arithmetic.
#pragma once

#include "cuda/heads/vectors.cuh"
#include "cuda/heads/decay.cuh"

namespace flash_rwkv::cuda {

// Tokens that are staged, and dealt with, together.
constexpr int kStageTokens = 4;

// One vector [N] a token. Tokens of a checkpoint block are token_bytes apart, blocks are block_bytes apart.
struct TokenRows {
  const char* data = nullptr;  // of the sequence's first token; nullptr: zeros
  int64_t token_bytes = 0;
  int64_t block_bytes = 0;
  DType dtype = DType::kFloat32;

  __device__ __forceinline__ const char* at(int64_t token) const {
    const uint64_t index = token;  // unsigned, so that the divisions are shifts
    return data + static_cast<int64_t>(index / kCudaCheckpointTokens) * block_bytes +
           static_cast<int64_t>(index % kCudaCheckpointTokens) * token_bytes;
  }
};

// Of the head, from the sequence's first token on.
__device__ __forceinline__ TokenRows token_rows(const View& view, int64_t batch, int64_t begin, int64_t head) {
  TokenRows rows;
  if (view.data == nullptr) return rows;
  const int64_t bytes = bytes_of(view.dtype);
  const int64_t first = batch * view.stride[0] + begin * view.stride[1] + head * view.stride[2];
  rows.data = static_cast<const char*>(view.data) + first * bytes;
  rows.token_bytes = view.stride[1] * bytes;
  rows.block_bytes = kCudaCheckpointTokens * rows.token_bytes;
  rows.dtype = view.dtype;
  return rows;
}

// kVectors plain vectors and the decay, of head size up to kWidth, staged by kThreads threads. In shared memory a token
// is kVectors + 1 vectors of kWidth floats, the retention last.
template <int kVectors, int kWidth, int kThreads>
class Stage {
 public:
  static constexpr int kTokenFloats = (kVectors + 1) * kWidth;
  static constexpr int kFloats = kStageTokens * kTokenFloats;

  // rows: of the plain vectors, in their order.
  __device__ Stage(const TokenRows (&rows)[kVectors], const TokenRows& decay, Decay form, int64_t length, int size)
      : decay_(decay), form_(form), length_(length), size_(size) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int vector = (static_cast<int>(threadIdx.x) + s * kThreads) / (kStageTokens * kPieces);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        if (vector == i) rows_[s] = rows[i];
      }
    }
  }

  // Starts loading tokens first … first + kStageTokens - 1: the decay, and the first `vectors` plain vectors.
  __device__ __forceinline__ void fetch(int64_t first, int vectors = kVectors) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int index = static_cast<int>(threadIdx.x) + s * kThreads;
      const int64_t token = first + index / kPieces % kStageTokens;
      const int column = index % kPieces * kPiece;
      const bool wanted = index < vectors * kStageTokens * kPieces && token < length_ && column < size_;
      raw_[s][0] = raw_[s][1] = make_uint4(0, 0, 0, 0);
      if (!wanted || rows_[s].data == nullptr) continue;
      const char* from = rows_[s].at(token) + column * bytes_of(rows_[s].dtype);
      raw_[s][0] = __ldg(reinterpret_cast<const uint4*>(from));
      if (rows_[s].dtype == DType::kFloat32) raw_[s][1] = __ldg(reinterpret_cast<const uint4*>(from) + 1);
    }
#pragma unroll
    for (int s = 0; s < kDecaySlots; ++s) {
      const int index = static_cast<int>(threadIdx.x) + s * kThreads;
      const int64_t token = first + index / kDecayPieces;
      const int column = index % kDecayPieces * kDecayPiece;
      valid_[s] = index < kStageTokens * kDecayPieces && token < length_ && column < size_;
      if (!valid_[s]) continue;
      const char* from = decay_.at(token) + column * bytes_of(decay_.dtype);
      if (decay_.dtype == DType::kFloat32) {
        decay_raw_[s] = __ldg(reinterpret_cast<const uint4*>(from));
      } else {
        const uint2 half = __ldg(reinterpret_cast<const uint2*>(from));
        decay_raw_[s] = make_uint4(half.x, half.y, 0, 0);
      }
    }
  }

  __device__ __forceinline__ void commit(float* to, int vectors = kVectors) const {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int index = static_cast<int>(threadIdx.x) + s * kThreads;
      if (index >= vectors * kStageTokens * kPieces) continue;
      float x[kPiece];
      unpack(raw_[s], rows_[s].dtype, x);
      const int token = index / kPieces % kStageTokens;
      const int vector = index / (kStageTokens * kPieces);
      float4* out = reinterpret_cast<float4*>(to + token * kTokenFloats + vector * kWidth + index % kPieces * kPiece);
      out[0] = make_float4(x[0], x[1], x[2], x[3]);
      out[1] = make_float4(x[4], x[5], x[6], x[7]);
    }
#pragma unroll
    for (int s = 0; s < kDecaySlots; ++s) {
      const int index = static_cast<int>(threadIdx.x) + s * kThreads;
      if (index >= kStageTokens * kDecayPieces) continue;
      float4 kept = make_float4(kKeepAll, kKeepAll, kKeepAll, kKeepAll);
      if (valid_[s]) {
        float x[kDecayPiece];
        unpack(decay_raw_[s], decay_.dtype, x);
        kept = make_float4(decay_value(x[0], form_).retention, decay_value(x[1], form_).retention,
                           decay_value(x[2], form_).retention, decay_value(x[3], form_).retention);
      }
      const int token = index / kDecayPieces;
      *reinterpret_cast<float4*>(to + token * kTokenFloats + kVectors * kWidth + index % kDecayPieces * kDecayPiece) =
          kept;
    }
  }

 private:
  static constexpr int kPiece = 8;  // elements that one thread loads of a vector; head sizes are multiples of it
  static constexpr int kPieces = kWidth / kPiece;
  static constexpr int kSlots = (kVectors * kStageTokens * kPieces + kThreads - 1) / kThreads;
  static constexpr int kDecayPiece = 4;  // fewer, because an exponential costs more than a load
  static constexpr int kDecayPieces = kWidth / kDecayPiece;
  static constexpr int kDecaySlots = (kStageTokens * kDecayPieces + kThreads - 1) / kThreads;

  TokenRows rows_[kSlots];
  TokenRows decay_;
  Decay form_;
  int64_t length_;
  int size_;
  uint4 raw_[kSlots][2];
  uint4 decay_raw_[kDecaySlots];
  bool valid_[kDecaySlots];
};

}  // namespace flash_rwkv::cuda
