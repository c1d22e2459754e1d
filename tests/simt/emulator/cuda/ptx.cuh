// In the place of the kernels' own cuda/ptx.cuh: the same functions, as the PTX ISA describes the instructions.
#pragma once

#include <algorithm>
#include <climits>
#include <utility>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime_api.h"

namespace flash_rwkv::cuda::ptx {

// --- Arithmetic ------------------------------------------------------------------------------------------------------

// Subnormal numbers, given or resulting, are zero.
inline float ex2_approx_ftz_f32(float x) {
  const float power = exp2f(x);
  return power < 0x1p-126f ? 0.0f : power;
}

// Subnormal numbers, given or resulting, are zero.
inline float rcp_approx_ftz_f32(float x) {
  if (fabsf(x) < 0x1p-126f) return copysignf(__uint_as_float(0x7f800000u), x);
  const float inverse = 1.0f / x;
  return fabsf(inverse) < 0x1p-126f ? copysignf(0.0f, x) : inverse;
}

// The 13 lower bits of what comes of it are zero.
inline unsigned cvt_rna_tf32_f32(float x) {
  const unsigned bits = __float_as_uint(x);
  if (!(fabsf(x) <= 0x1.fffffep127f)) return x != x ? 0x7fffffffu : bits;
  return (bits + 0x1000u) & ~0x1fffu;
}

// --- Registers -------------------------------------------------------------------------------------------------------

inline int redux_sync_min_s32(int x, SIMT_PLACE) {
  int least = 0;
  simt::meet_whole_warp(&x, &least,
                        [](const simt::Meeting& warp) {
                          int least = INT_MAX;
                          for (const void* in : warp.in) least = std::min(least, *static_cast<const int*>(in));
                          for (void* out : warp.out) *static_cast<int*>(out) = least;
                        },
                        {"redux.sync", file, line});
  return least;
}

// --- Global memory ---------------------------------------------------------------------------------------------------

template <class Words>
void st_global_b32(void* to, Words words) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof(Words) != 0) simt::fail("st.global: not aligned to all of its words");
  std::memcpy(to, &words, sizeof(Words));
}

// --- Words that blocks tell each other something by: one block after another ------------------------------------------

inline int atom_add_relaxed_gpu_s32(int* at, int x) { return std::exchange(*at, *at + x); }
inline void st_release_gpu_s32(int* to, int x) { *to = x; }
inline int ld_acquire_gpu_s32(const int* from) { return *from; }

// --- Barriers of some warps ------------------------------------------------------------------------------------------

inline void bar_sync(int barrier, int threads, SIMT_PLACE) {
  simt::meet_at_barrier(barrier, threads, true, {"bar.sync", file, line});
}
inline void bar_arrive(int barrier, int threads, SIMT_PLACE) {
  simt::meet_at_barrier(barrier, threads, false, {"bar.arrive", file, line});
}

// --- Copies in the background ----------------------------------------------------------------------------------------

template <int kBytes>
void cp_async_cg_shared_global(void* to, const void* from, int bytes) {
  static_assert(kBytes == 16);
  simt::copy_later(to, from, kBytes, bytes);
}

template <int kBytes>
void cp_async_ca_shared_global(void* to, const void* from, int bytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  simt::copy_later(to, from, kBytes, bytes);
}

inline void cp_async_commit_group() { simt::close_group(); }

template <int kGroups>
void cp_async_wait_group() {
  simt::wait_for_groups(kGroups);
}

inline void cp_async_wait_all() { simt::wait_for_all(); }

inline void prefetch_global_l2(const void*) {}

// --- ldmatrix --------------------------------------------------------------------------------------------------------

template <int kCount, bool kTransposed>
void ldmatrix(unsigned (&x)[kCount], const void* row, simt::Site site) {
  using Row = const unsigned short*;  // [8]
  const Row mine = static_cast<Row>(row);
  if (simt::lane() < 8 * kCount) simt::check_shared(mine, 16, 16, site.instruction);
  simt::meet_whole_warp(
      &mine, &x,
      [](const simt::Meeting& warp) {
        for (int lane = 0; lane < simt::kWarp; ++lane)
          for (int i = 0; i < kCount; ++i) {
            unsigned pair = 0;
            for (int half = 0; half < 2; ++half) {
              int from = lane / 4, column = 2 * (lane % 4) + half;
              if (kTransposed) std::swap(from, column);
              pair |= unsigned{(*static_cast<const Row*>(warp.in[8 * i + from]))[column]} << 16 * half;
            }
            static_cast<unsigned*>(warp.out[lane])[i] = pair;
          }
      },
      site);
}

inline void ldmatrix_x1(unsigned (&x)[1], const void* row, SIMT_PLACE) {
  ldmatrix<1, false>(x, row, {"ldmatrix.x1", file, line});
}
inline void ldmatrix_x2(unsigned (&x)[2], const void* row, SIMT_PLACE) {
  ldmatrix<2, false>(x, row, {"ldmatrix.x2", file, line});
}
inline void ldmatrix_x4(unsigned (&x)[4], const void* row, SIMT_PLACE) {
  ldmatrix<4, false>(x, row, {"ldmatrix.x4", file, line});
}
inline void ldmatrix_x1_trans(unsigned (&x)[1], const void* row, SIMT_PLACE) {
  ldmatrix<1, true>(x, row, {"ldmatrix.x1.trans", file, line});
}
inline void ldmatrix_x2_trans(unsigned (&x)[2], const void* row, SIMT_PLACE) {
  ldmatrix<2, true>(x, row, {"ldmatrix.x2.trans", file, line});
}
inline void ldmatrix_x4_trans(unsigned (&x)[4], const void* row, SIMT_PLACE) {
  ldmatrix<4, true>(x, row, {"ldmatrix.x4.trans", file, line});
}

// --- stmatrix --------------------------------------------------------------------------------------------------------

template <bool kTransposed>
void stmatrix(void* row, const unsigned (&x)[4], simt::Site site) {
  struct Brought {
    unsigned short* row;  // [8]
    unsigned x[4];
  };
  const Brought mine = {static_cast<unsigned short*>(row), {x[0], x[1], x[2], x[3]}};
  simt::check_shared(mine.row, 16, 16, site.instruction);
  unsigned nothing = 0;
  simt::meet_whole_warp(
      &mine, &nothing,
      [](const simt::Meeting& warp) {
        const auto brought = [&](int lane) -> const Brought& { return *static_cast<const Brought*>(warp.in[lane]); };
        for (int lane = 0; lane < simt::kWarp; ++lane)
          for (int i = 0; i < 4; ++i)
            for (int half = 0; half < 2; ++half) {
              int to = lane / 4, column = 2 * (lane % 4) + half;
              if (kTransposed) std::swap(to, column);
              brought(8 * i + to).row[column] = static_cast<unsigned short>(brought(lane).x[i] >> 16 * half);
            }
      },
      site);
}

inline void stmatrix_x4(void* row, const unsigned (&x)[4], SIMT_PLACE) {
  stmatrix<false>(row, x, {"stmatrix.x4", file, line});
}
inline void stmatrix_x4_trans(void* row, const unsigned (&x)[4], SIMT_PLACE) {
  stmatrix<true>(row, x, {"stmatrix.x4.trans", file, line});
}

inline unsigned movmatrix_trans(unsigned x, SIMT_PLACE) {
  unsigned transposed = 0;
  simt::meet_whole_warp(&x, &transposed,
                        [](const simt::Meeting& warp) {
                          for (int lane = 0; lane < simt::kWarp; ++lane) {
                            unsigned pair = 0;
                            for (int half = 0; half < 2; ++half) {
                              const int row = 2 * (lane % 4) + half, column = lane / 4;
                              const unsigned word = *static_cast<const unsigned*>(warp.in[4 * row + column / 2]);
                              pair |= (word >> 16 * (column % 2) & 0xffffu) << 16 * half;
                            }
                            *static_cast<unsigned*>(warp.out[lane]) = pair;
                          }
                        },
                        {"movmatrix.trans", file, line});
  return transposed;
}

// --- mma -------------------------------------------------------------------------------------------------------------

// What a lane brings.
struct Fragments {
  unsigned a[4], b[2];
  float c[4];
};

// d = a b + c of 16 · kDepth and kDepth · 8 elements, kPacked of them in a register; `value` is that of an element.
// Each element of d is rounded once.
template <int kDepth, int kPacked, class Value>
void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], const float (&c)[4], Value, simt::Site site) {
  const Fragments in = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {c[0], c[1], c[2], c[3]}};
  simt::meet_whole_warp(
      &in, &d,
      [](const simt::Meeting& warp) {
        // Column k of A and row k of B are in the half `high` of the depth, at lane t of four, in part p of a register.
        const auto element = [](unsigned word, int part) { return double{Value()(word >> 16 * part)}; };
        for (int row = 0; row < 16; ++row)
          for (int column = 0; column < 8; ++column) {
            const int holder = 4 * (row % 8) + column / 2, place = row / 8 * 2 + column % 2;
            double sum = static_cast<const Fragments*>(warp.in[holder])->c[place];
            for (int k = 0; k < kDepth; ++k) {
              const int high = k / (kDepth / 2), t = k % (kDepth / 2) / kPacked, part = k % kPacked;
              const Fragments& of_a = *static_cast<const Fragments*>(warp.in[4 * (row % 8) + t]);
              const Fragments& of_b = *static_cast<const Fragments*>(warp.in[4 * column + t]);
              sum += element(of_a.a[2 * high + row / 8], part) * element(of_b.b[high], part);
            }
            static_cast<float*>(warp.out[holder])[place] = static_cast<float>(sum);
          }
      },
      site);
}

inline void mma_m16n8k16_f32_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], const float (&c)[4],
                                  SIMT_PLACE) {
  const auto value = [](unsigned word) { return __uint_as_float(word << 16); };
  mma<16, 2>(d, a, b, c, value, {"mma.m16n8k16.bf16", file, line});
}

inline void mma_m16n8k16_f32_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], const float (&c)[4],
                                 SIMT_PLACE) {
  const auto value = [](unsigned word) { return __half2float(__ushort_as_half(static_cast<unsigned short>(word))); };
  mma<16, 2>(d, a, b, c, value, {"mma.m16n8k16.f16", file, line});
}

inline void mma_m16n8k8_f32_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], const float (&c)[4],
                                 SIMT_PLACE) {
  const auto value = [](unsigned word) { return __uint_as_float(word & ~0x1fffu); };
  mma<8, 1>(d, a, b, c, value, {"mma.m16n8k8.tf32", file, line});
}

}  // namespace flash_rwkv::cuda::ptx
