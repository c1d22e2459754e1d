// Matrices of 16 · 16 elements, spread over the lanes of a warp as the tensor cores take them and give them.
//
// What is given, sums in fp32, can be rounded and taken again as it lies: as a left operand, or as the transposed of a
// right one. So all products here are written A · transposed(B), and no element changes its lane between them.
#pragma once

#include <type_traits>

#include "cuda/elements.cuh"
#include "cuda/ptx.cuh"

namespace flash_rwkv::cuda::chunk {

// Two elements of 16 bits in a word, the first in its lower half.
template <class T>
struct Pair;

template <>
struct Pair<__nv_bfloat16> {
  __device__ static __forceinline__ unsigned pack(float x, float y) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
    return *reinterpret_cast<const unsigned*>(&pair);
  }
  __device__ static __forceinline__ float first(unsigned word) { return __uint_as_float(word << 16); }
  __device__ static __forceinline__ float second(unsigned word) { return __uint_as_float(word & 0xffff0000u); }
};

template <>
struct Pair<__half> {
  __device__ static __forceinline__ unsigned pack(float x, float y) {
    const __half2 pair = __floats2half2_rn(x, y);
    return *reinterpret_cast<const unsigned*>(&pair);
  }
  __device__ static __forceinline__ float first(unsigned word) { return floats(word).x; }
  __device__ static __forceinline__ float second(unsigned word) { return floats(word).y; }

 private:
  __device__ static __forceinline__ float2 floats(unsigned word) {
    return __half22float2(*reinterpret_cast<const __half2*>(&word));
  }
};

// A left operand. With g = lane / 4 and t = lane % 4: x[0]: row g, columns 2t and 2t + 1; x[1]: row g + 8; x[2] and
// x[3]: the same of columns 2t + 8 and 2t + 9.
struct Fragment {
  unsigned x[4];
};

// The same as a right operand, which the tensor cores want the pairs of a row side by side of: x[0] and x[1]: row g;
// x[2] and x[3]: row g + 8.
struct RightFragment {
  unsigned x[4];
};

__device__ __forceinline__ RightFragment as_right(const Fragment& f) { return {{f.x[0], f.x[2], f.x[1], f.x[3]}}; }

// Sums in the same order: x[0]: columns 0 … 7, of row g in the first two, of g + 8 in the others; x[1]: columns 8 … 15.
struct Sums {
  float x[2][4];
};

__device__ __forceinline__ Sums zero_sums() { return {}; }

template <class T>
__device__ __forceinline__ Fragment rounded(const Sums& s) {
  return {{Pair<T>::pack(s.x[0][0], s.x[0][1]), Pair<T>::pack(s.x[0][2], s.x[0][3]),
           Pair<T>::pack(s.x[1][0], s.x[1][1]), Pair<T>::pack(s.x[1][2], s.x[1][3])}};
}

// Elements of rows g and g + 8, four each.
template <class T>
__device__ __forceinline__ void unpack(const Fragment& f, float (&x)[2][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[i % 2][i / 2 * 2] = Pair<T>::first(f.x[i]);
    x[i % 2][i / 2 * 2 + 1] = Pair<T>::second(f.x[i]);
  }
}

// The same elements in another type.
template <class To, class From>
__device__ __forceinline__ unsigned converted(unsigned word) {
  if constexpr (std::is_same_v<To, From>) return word;
  else return Pair<To>::pack(Pair<From>::first(word), Pair<From>::second(word));
}
template <class To, class From>
__device__ __forceinline__ Fragment converted(const Fragment& f) {
  return {{converted<To, From>(f.x[0]), converted<To, From>(f.x[1]), converted<To, From>(f.x[2]),
           converted<To, From>(f.x[3])}};
}

// As sums.
template <class T>
__device__ __forceinline__ Sums exact(const Fragment& f) {
  Sums s;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    s.x[i / 2][i % 2 * 2] = Pair<T>::first(f.x[i]);
    s.x[i / 2][i % 2 * 2 + 1] = Pair<T>::second(f.x[i]);
  }
  return s;
}

// What rounding has left over, rounded itself.
template <class T>
__device__ __forceinline__ Fragment remainder(const Sums& s, const Fragment& of) {
  Fragment rest;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    rest.x[i] = Pair<T>::pack(s.x[i / 2][i % 2 * 2] - Pair<T>::first(of.x[i]),
                              s.x[i / 2][i % 2 * 2 + 1] - Pair<T>::second(of.x[i]));
  return rest;
}

template <class T>
__device__ __forceinline__ void mma(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  const unsigned b[2] = {b0, b1};
  if constexpr (std::is_same_v<T, __half>) ptx::mma_m16n8k16_f32_f16(sum, a, b, sum);
  else ptx::mma_m16n8k16_f32_bf16(sum, a, b, sum);
}

// sum += A · transposed(B)
template <class T>
__device__ __forceinline__ void multiply_add(Sums& sum, const Fragment& a, const RightFragment& b) {
  mma<T>(sum.x[0], a.x, b.x[0], b.x[1]);
  mma<T>(sum.x[1], a.x, b.x[2], b.x[3]);
}

__device__ __forceinline__ Fragment transposed(const Fragment& f) {
  return {{ptx::movmatrix_trans(f.x[0]), ptx::movmatrix_trans(f.x[2]), ptx::movmatrix_trans(f.x[1]),
           ptx::movmatrix_trans(f.x[3])}};
}

// --- In shared memory: the words of a lane side by side --------------------------------------------------------------

template <class AnyFragment>
__device__ __forceinline__ AnyFragment load_fragment(const uint4* from, int lane) {
  const uint4 word = from[lane];
  return {{word.x, word.y, word.z, word.w}};
}

template <class AnyFragment>
__device__ __forceinline__ void store_fragment(uint4* to, int lane, const AnyFragment& f) {
  to[lane] = make_uint4(f.x[0], f.x[1], f.x[2], f.x[3]);
}

// Where an element of a right operand lies there. Columns 2i and 2i + 1 make a word.
__device__ __forceinline__ int element_of_right(int row, int column) {
  return ((row % 8 * 4 + column % 8 / 2) * 4 + row / 8 * 2 + column / 8) * 2 + column % 2;
}

}  // namespace flash_rwkv::cuda::chunk
