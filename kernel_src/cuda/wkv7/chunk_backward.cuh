// WKV7 in matrix form, backwards: what the warps of a block tell each other.
//
// In the letters of chunk.cuh, with dX the gradient of X, G that of the state behind a chunk, and W = T^-1 U:
//   dU = A_rb' dY + B^ G';   dW = T' dU;   dV = A_rk' dY + A_ak' dW + K^ G';   G <- G diag(D_last) + dY' R~ + dW' A~
// is the forward pass over again, with G, dY and the transposed matrices in the places of S, V and the matrices. From
// what these leave come the gradients of a chunk's columns:
//   P_ab, P_ak = dW U', dW V';   P_rb, P_rk = dY U', dY V', the gradients of the scores;
//   dA~ = dW S;   dR~ = dY S;   dB^ = U G;   dK^ = V G;   and that of log D_last = D_last (sum over values of S G).
//
// The tokens of a checkpoint, four chunks, are a block's at a time. Each of its warps is in turn that of a chunk, or of
// half the columns of one, which it prepares; of 16 value rows, in which it goes forward through all chunks and back;
// and, chunk by chunk, of 16 key columns, whose gradients it finishes.
//
// Operands are bfloat16 whatever the inputs are: gradients have its range.
#pragma once

#include "cuda/heads/stage.cuh"
#include "cuda/wkv7/chunk_columns.cuh"

namespace flash_rwkv::cuda::wkv7_chunk {

using Operand = __nv_bfloat16;

constexpr int kChunks = static_cast<int>(kCheckpointTokens) / kTokens;

// The vectors of a head of a sequence, and where its gradients begin: in shared memory, since all of this would fill the
// registers.
struct HeadVectors {
  enum Which { kR, kK, kA, kB, kW, kV, kDy, kVectors };

  // One vector [N] a token.
  struct __align__(16) Rows {
    const char* data;
    uint32_t token_bytes;  // from token to token
    int length;            // tokens to copy: none of a tensor that is absent, or a w in fp32

    __device__ __forceinline__ const char* at(int token) const {
      return data + static_cast<uint64_t>(static_cast<uint32_t>(token)) * token_bytes;
    }
  };
  Rows rows[kVectors];
  int64_t gradients;  // in elements; one for all tensors

  __device__ void set(const Wkv7Params& p, const Wkv7Gradients& g, int64_t sequence, int64_t head) {
    const int64_t batch = p.sequences.batch(sequence), begin = p.sequences.begin(sequence);
    const int length = static_cast<int>(p.sequences.length(sequence));
    const View* const views[kVectors] = {&p.r, &p.k, &p.a, &p.b, &p.w, &p.v, &g.grad_y};
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const TokenRows tokens = token_rows(*views[i], batch, begin, head);
      const bool copied = tokens.data != nullptr && views[i]->dtype != DType::kFloat32;
      rows[i] = {tokens.data, tokens.token_bytes, copied ? length : 0};
    }
    gradients = batch * g.dr.stride[0] + begin * g.dr.stride[1] + head * g.dr.stride[2];
  }
};

// Shared memory of a chunk: its columns, as they came and then prepared; gradients of y, values and U; its matrices.
// kAll: not only what G needs on its way back. kHasU: with U, and with room for scores' gradients.
template <int kSize, bool kAll_, bool kHasU>
struct PreparedChunk {
  static constexpr bool kAll = kAll_;
  // No enumerators have the same number: nvcc 13.0 leaves `= other` out of what a template has for the host's compiler.
  enum Rows { kA, kR, kB, kDy, kK, kV, kU, kAllRows };
  static constexpr int kRowsOfG = kK;
  // Right operands; t: transposed. kInverseT is A_ab at first, kRbT and kRkT are A_rb and A_rk. The last two are for the
  // way forward.
  enum Matrix { kInverseT, kRbT, kRkT, kAkT, kInverse, kAk, kAllMatrices };
  static constexpr int kMatricesOfG = kInverse;

  char* data;

  __device__ Tile<kSize> rows(int which) const { return {data + which * kTile}; }
  __device__ uint4* matrix(int which) const { return reinterpret_cast<uint4*>(data + kMatrix + which * kFragment); }
  // w, of 16 bits, as it came: before there are matrices, and once they have been used.
  __device__ Tile<kSize> decays() const {
    static_assert(!kHasU || kTile <= kMatricesOfG * kFragment, "scores' gradients are in the other matrices then");
    return {data + kMatrix};
  }
  __device__ float* decay() const { return reinterpret_cast<float*>(data + kDecay); }

 private:
  static constexpr int kTile = Tile<kSize>::kBytes;
  static constexpr int kFragment = kWarp * static_cast<int>(sizeof(uint4));
  static constexpr int kMatrix = (kHasU ? kAllRows : kAll ? kU : kRowsOfG) * kTile;
  static constexpr int kMatrices = (kAll ? kAllMatrices : kMatricesOfG) * kFragment;
  static constexpr int kDecay = kMatrix + (kMatrices > kTile ? kMatrices : kTile);

 public:
  static constexpr int kBytes = kDecay + kSize * static_cast<int>(sizeof(float));
};

// Shared memory of a block. kStates: of so many chunks it has S and U, all or half of them: then the second half's come
// first, in the places that those of the first half will have, who go forward once more for theirs.
template <int kSize, int kStates>
struct BackwardMemory {
  static constexpr bool kAllStates = kStates == kChunks;
  static_assert(kAllStates || 2 * kStates == kChunks);
  using Chunk = PreparedChunk<kSize, true, kAllStates>;
  enum Score { kScoreAb, kScoreAk, kScoreRb, kScoreRk, kScores };

  char* data;

  __device__ Chunk chunk(int i) const { return {data + i * Chunk::kBytes}; }
  // 16 rows of the state before a chunk, and of G, and U and dW.
  __device__ Tile<kSize> state(int chunk, int block) const {
    return {data + kState + ((kAllStates ? chunk : chunk % kStates) * kBlocks + block) * kTile};
  }
  __device__ Tile<kSize> u(int i) const { return u_or_v(i, true); }
  __device__ Tile<kSize> u_or_v(int i, bool is_u) const {
    if constexpr (kAllStates) return chunk(i).rows(is_u ? Chunk::kU : Chunk::kV);
    else return is_u ? Tile<kSize>{data + kU + i % kStates * kTile} : chunk(i).rows(Chunk::kV);
  }
  __device__ Tile<kSize> gradient(int block) const { return {data + kGradient + block * kTile}; }
  __device__ Tile<kSize> dw() const { return {data + kDw}; }
  // P of one chunk as left operands, and beside each of queries that transposed of keys which the same is multiplied by:
  // P_ab and P_ab', P_ak and P_rb', P_rb and P_ak', P_rk and P_rk'. If nobody goes forward any more, they are where
  // matrices were for that.
  __device__ uint4* score(int of_queries, bool transposed) const {
    static_assert(Chunk::kAk == Chunk::kInverse + 1);
    if constexpr (kAllStates) return chunk(of_queries).matrix(Chunk::kInverse + transposed);
    else return reinterpret_cast<uint4*>(data + kScore) + (2 * of_queries + transposed) * kWarp;
  }
  __device__ static int across(int which) {
    return which == kScoreAk ? kScoreRb : which == kScoreRb ? kScoreAk : which;
  }
  __device__ float* diagonal(int which) const {
    return reinterpret_cast<float*>(data + kDiagonal) + (which - kScoreRb) * kTokens;
  }
  __device__ HeadVectors& vectors() const { return *reinterpret_cast<HeadVectors*>(data + kVectors); }

 private:
  static_assert(kScores <= kChunks);
  static constexpr int kBlocks = kSize / 16;
  static constexpr int kTile = Tile<kSize>::kBytes;
  static constexpr int kState = kChunks * Chunk::kBytes;
  static constexpr int kGradient = kState + kStates * kBlocks * kTile;
  static constexpr int kDw = kGradient + kBlocks * kTile;
  static constexpr int kU = kDw + kTile;
  static constexpr int kScore = kU + (kAllStates ? 0 : kStates * kTile);
  static constexpr int kDiagonal = kScore + (kAllStates ? 0 : 2 * kScores * kWarp * static_cast<int>(sizeof(uint4)));
  static constexpr int kVectors = kDiagonal + 2 * kTokens * static_cast<int>(sizeof(float));

 public:
  static constexpr int kBytes = kVectors + static_cast<int>(sizeof(HeadVectors));
};

}  // namespace flash_rwkv::cuda::wkv7_chunk
