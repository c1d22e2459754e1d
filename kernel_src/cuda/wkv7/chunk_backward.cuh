// WKV7 in matrix form, backwards: what the warps of a block tell each other.
//
// In the letters of chunk.cuh, with dX the gradient of X, G that of the state behind a chunk, and W = T^-1 U:
//   dU = A_rb' dY + B^ G';   dW = T' dU;   dV = A_rk' dY + A_ak' dW + K^ G';   G <- G diag(D_last) + dY' R~ + dW' A~
// is the forward pass over again, with G, dY and the transposed matrices in the places of S, V and the matrices. From
// what these leave come the gradients of a chunk's columns:
//   P_ab, P_ak = dW U', dW V';   P_rb, P_rk = dY U', dY V', the gradients of the scores;
//   dA~ = dW S;   dR~ = dY S;   dB^ = U G;   dK^ = V G;   and that of log D_last = D_last (sum over values of S G).
//
// The tokens of a checkpoint, four chunks, are a block's at a time. Each of its four warps is in turn that of a chunk,
// which it prepares; of 16 value rows, in which it goes forward through all chunks and back; and, chunk by chunk, of 16
// key columns, whose gradients it finishes.
//
// Operands are bfloat16 whatever the inputs are: gradients have its range.
#pragma once

#include "cuda/wkv7/chunk_columns.cuh"

namespace flash_rwkv::cuda::wkv7_chunk {

using Operand = __nv_bfloat16;

constexpr int kChunks = static_cast<int>(kCheckpointTokens) / kTokens;

// Where the vectors of a head of a sequence begin, in bytes from their tensors: in shared memory, since all of them
// would fill the registers.
struct HeadOffsets {
  int64_t r, w, k, v, a, b, dy;
  int64_t gradients;  // in elements; one for all tensors

  __device__ void set(const Wkv7Params& p, const Wkv7Gradients& g, int64_t batch, int64_t begin, int64_t head) {
    const auto bytes = [&](const View& x) {
      return (batch * x.stride[0] + begin * x.stride[1] + head * x.stride[2]) * bytes_of(x.dtype);
    };
    r = bytes(p.r), w = bytes(p.w), k = bytes(p.k), v = bytes(p.v), a = bytes(p.a), b = bytes(p.b);
    dy = bytes(g.grad_y);
    gradients = bytes(g.dr) / bytes_of(g.dr.dtype);
  }
};

// Shared memory of a block.
template <int kSize>
struct BackwardMemory {
  // Of a chunk: its columns, prepared; its values and gradients of y; U; the state before it.
  enum Rows { kA, kR, kB, kK, kV, kDy, kU, kRows };
  // Right operands; t: transposed. kInverseT is A_ab at first, kRbT and kRkT are A_rb and A_rk.
  enum Matrix { kInverse, kInverseT, kAk, kAkT, kRbT, kRkT, kMatrices };
  // Where matrices and A~ were: left operands, P and its transposed.
  enum Score { kScoreAb, kScoreAk, kScoreRb, kScoreRk, kScores };

  char* data;

  __device__ Tile<kSize> rows(int chunk, int which) const { return {data + (chunk * kRows + which) * kTile}; }
  // 16 rows of a state and of G, and dW.
  __device__ Tile<kSize> state(int chunk, int block) const {
    return {data + kState + (chunk * kBlocks + block) * kTile};
  }
  __device__ Tile<kSize> gradient(int block) const { return {data + kGradient + block * kTile}; }
  __device__ Tile<kSize> dw() const { return {data + kDw}; }
  __device__ uint4* matrix(int chunk, int which) const {
    return reinterpret_cast<uint4*>(data + kMatrix) + (chunk * kMatrices + which) * kWarp;
  }
  __device__ HeadOffsets& offsets() const { return *reinterpret_cast<HeadOffsets*>(data + kOffsets); }
  __device__ float* decay(int chunk) const { return reinterpret_cast<float*>(data + kDecay) + chunk * kSize; }

  // Once the chunk's matrices and columns have been used.
  __device__ uint4* score(int chunk, int which) const { return matrix(chunk, which); }
  __device__ uint4* score_transposed(int chunk, int which) const {
    static_assert(kScores * kWarp * sizeof(uint4) <= kTile);
    return reinterpret_cast<uint4*>(rows(chunk, kA).data) + which * kWarp;
  }
  __device__ float* diagonal(int chunk, int which) const {
    return reinterpret_cast<float*>(matrix(chunk, kScores)) + (which - kScoreRb) * kTokens;
  }

 private:
  static constexpr int kBlocks = kSize / 16;
  static constexpr int kTile = Tile<kSize>::kBytes;
  static constexpr int kState = kChunks * kRows * kTile;
  static constexpr int kGradient = kState + kChunks * kBlocks * kTile;
  static constexpr int kDw = kGradient + kBlocks * kTile;
  static constexpr int kMatrix = kDw + kTile;
  static constexpr int kDecay = kMatrix + kChunks * kMatrices * kWarp * static_cast<int>(sizeof(uint4));
  static constexpr int kOffsets = kDecay + kChunks * kSize * static_cast<int>(sizeof(float));

 public:
  static constexpr int kBytes = kOffsets + static_cast<int>(sizeof(HeadOffsets));
};

// Two elements of T as two operands, and back.
template <class T>
__device__ __forceinline__ unsigned as_operands(unsigned word) {
  if constexpr (std::is_same_v<T, Operand>) return word;
  else return Pair<Operand>::pack(Pair<T>::first(word), Pair<T>::second(word));
}

template <int kSize>
__device__ __forceinline__ RightFragment load_right(const Tile<kSize>& tile, int block, int lane) {
  return as_right(tile.load(block, lane));
}

// The columns of a chunk in global memory, for a lane that has tokens 2g and 2g + 1 of them.
template <class T>
class ChunkSource {
 public:
  __device__ __forceinline__ ChunkSource(const Wkv7Params& p, const HeadOffsets& offsets, int length)
      : p_(p), offsets_(offsets), length_(length) {}

  // Has the chunk's vectors of kSize columns brought to the L2 cache.
  template <int kSize>
  __device__ __forceinline__ void prefetch(const View& dy, int first) const {
    const int lane = threadIdx.x % kWarp;
    const int token = first + lane % kTokens;
    if (token >= length_) return;
    const auto ask = [&](const View& view, int64_t offset) {
      const int size = view.dtype == DType::kFloat32 ? 4 : 2;
      ptx::prefetch_global_l2(static_cast<const char*>(view.data) + offset +
                              (token * view.stride[1] + lane / kTokens * (kSize / 2)) * size);
    };
    ask(p_.r, offsets_.r);
    ask(p_.w, offsets_.w);
    ask(p_.k, offsets_.k);
    ask(p_.v, offsets_.v);
    ask(p_.a, offsets_.a);
    ask(p_.b, offsets_.b);
    if (dy.data != nullptr) ask(dy, offsets_.dy);
  }

  // Where this lane's first columns of its first token are.
  struct Rows {
    const char *r, *w, *k, *a, *b;
    bool there[2];  // the tokens
  };

  // first: token of the chunk.
  __device__ __forceinline__ Rows rows(int first) const {
    const int lane = threadIdx.x % kWarp;
    const int token = first + lane / 4 * 2;
    const auto at = [&](const View& view, int64_t offset) {
      const int size = view.dtype == DType::kFloat32 ? 4 : 2;
      return static_cast<const char*>(view.data) + offset + (token * view.stride[1] + lane % 4 * 2) * size;
    };
    return {at(p_.r, offsets_.r), at(p_.w, offsets_.w), at(p_.k, offsets_.k),
            at(p_.a, offsets_.a), at(p_.b, offsets_.b), {token < length_, token + 1 < length_}};
  }

  // Columns 16 block … 16 block + 15.
  __device__ __forceinline__ Raw load(const Rows& rows, int block) const {
    // Words (pairs of elements) of both tokens, of one piece of eight columns and of the next.
    const auto load_words = [&](const char* at, const View& view, unsigned (&x)[4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        x[i] = rows.there[i % 2]
                   ? *reinterpret_cast<const unsigned*>(at + i % 2 * (2 * view.stride[1]) + 32 * block + i / 2 * 16)
                   : 0;
    };
    const auto load_operands = [&](const char* at, const View& view, Fragment& f) {
      load_words(at, view, f.x);
#pragma unroll
      for (unsigned& x : f.x) x = as_operands<T>(x);
    };
    Raw x;
    load_operands(rows.r, p_.r, x.r);
    load_operands(rows.k, p_.k, x.k);
    load_operands(rows.a, p_.a, x.a);
    load_operands(rows.b, p_.b, x.b);
    if (p_.w.dtype == DType::kFloat32) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const char* const at = rows.w + i % 2 * (4 * p_.w.stride[1]) + 64 * block + i / 2 * 32;
        const float2 pair = rows.there[i % 2] ? *reinterpret_cast<const float2*>(at) : float2{};
        x.w[i % 2][i / 2 * 2] = pair.x, x.w[i % 2][i / 2 * 2 + 1] = pair.y;
      }
    } else {
      Fragment w;
      load_words(rows.w, p_.w, w.x);
      unpack<T>(w, x.w);
    }
    return x;
  }

 private:
  const Wkv7Params& p_;
  const HeadOffsets& offsets_;
  const int length_;
};

}  // namespace flash_rwkv::cuda::wkv7_chunk
