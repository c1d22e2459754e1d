// The instructions of tensor cores by themselves: registers of all lanes in, registers of all lanes out.
#include "cuda/launch.h"
#include "cuda/ptx.cuh"

namespace flash_rwkv::cuda {
namespace {

enum Kind { kBFloat16, kFloat16, kTf32 };

// a: [32, 4], b: [32, 2], c and d: [32, 4]
__global__ void mma_kernel(Kind kind, const unsigned* a, const unsigned* b, const float* c, float* d) {
  unsigned mine_a[4], mine_b[2];
  float sum[4];
  for (int i = 0; i < 4; ++i) mine_a[i] = a[threadIdx.x * 4 + i], sum[i] = c[threadIdx.x * 4 + i];
  for (int i = 0; i < 2; ++i) mine_b[i] = b[threadIdx.x * 2 + i];
  if (kind == kBFloat16) ptx::mma_m16n8k16_f32_bf16(sum, mine_a, mine_b, sum);
  if (kind == kFloat16) ptx::mma_m16n8k16_f32_f16(sum, mine_a, mine_b, sum);
  if (kind == kTf32) ptx::mma_m16n8k8_f32_tf32(sum, mine_a, mine_b, sum);
  for (int i = 0; i < 4; ++i) d[threadIdx.x * 4 + i] = sum[i];
}

// matrices: [4, 8, 8], x: [32, kCount]
template <int kCount>
__global__ void ldmatrix_kernel(bool transposed, const uint4* matrices, unsigned* x) {
  __shared__ uint4 rows[32];
  rows[threadIdx.x] = matrices[threadIdx.x];
  __syncthreads();
  unsigned mine[kCount];
  const uint4* const row = rows + threadIdx.x % (8 * kCount);
  if constexpr (kCount == 1) transposed ? ptx::ldmatrix_x1_trans(mine, row) : ptx::ldmatrix_x1(mine, row);
  if constexpr (kCount == 2) transposed ? ptx::ldmatrix_x2_trans(mine, row) : ptx::ldmatrix_x2(mine, row);
  if constexpr (kCount == 4) transposed ? ptx::ldmatrix_x4_trans(mine, row) : ptx::ldmatrix_x4(mine, row);
  for (int i = 0; i < kCount; ++i) x[threadIdx.x * kCount + i] = mine[i];
}

// x: [32, 4], matrices: [4, 8, 8]
__global__ void stmatrix_kernel(bool transposed, const unsigned* x, uint4* matrices) {
  __shared__ uint4 rows[32];
  unsigned mine[4];
  for (int i = 0; i < 4; ++i) mine[i] = x[threadIdx.x * 4 + i];
  transposed ? ptx::stmatrix_x4_trans(rows + threadIdx.x, mine) : ptx::stmatrix_x4(rows + threadIdx.x, mine);
  __syncthreads();
  matrices[threadIdx.x] = rows[threadIdx.x];
}

// product: [16, 8] = a: [16, 16] b: [16, 8], of bfloat16, as a kernel would go about it.
__global__ void product_kernel(const uint4* a, const uint4* b, float* product) {
  __shared__ uint4 rows_of_a[16][2], rows_of_b[16];
  const int lane = static_cast<int>(threadIdx.x);
  rows_of_a[lane / 2][lane % 2] = a[lane];
  if (lane < 16) rows_of_b[lane] = b[lane];
  __syncwarp();
  unsigned fragment_a[4], fragment_b[2];
  ptx::ldmatrix_x4(fragment_a, &rows_of_a[lane % 16][lane / 16]);
  ptx::ldmatrix_x2_trans(fragment_b, &rows_of_b[lane % 16]);
  float sum[4] = {};
  ptx::mma_m16n8k16_f32_bf16(sum, fragment_a, fragment_b, sum);
  for (int i = 0; i < 4; ++i) product[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

__global__ void tf32_kernel(const float* x, unsigned* rounded) {
  rounded[threadIdx.x] = ptx::cvt_rna_tf32_f32(x[threadIdx.x]);
}

}  // namespace
}  // namespace flash_rwkv::cuda

using namespace flash_rwkv::cuda;

extern "C" {

cudaError_t run_mma(int kind, const unsigned* a, const unsigned* b, const float* c, float* d) {
  return launch(mma_kernel, 1, 32, 0, nullptr, static_cast<Kind>(kind), a, b, c, d);
}

cudaError_t run_ldmatrix(int count, bool transposed, const uint4* matrices, unsigned* x) {
  if (count == 1) return launch(ldmatrix_kernel<1>, 1, 32, 0, nullptr, transposed, matrices, x);
  if (count == 2) return launch(ldmatrix_kernel<2>, 1, 32, 0, nullptr, transposed, matrices, x);
  return launch(ldmatrix_kernel<4>, 1, 32, 0, nullptr, transposed, matrices, x);
}

cudaError_t run_stmatrix(bool transposed, const unsigned* x, uint4* matrices) {
  return launch(stmatrix_kernel, 1, 32, 0, nullptr, transposed, x, matrices);
}

cudaError_t run_product(const uint4* a, const uint4* b, float* product) {
  return launch(product_kernel, 1, 32, 0, nullptr, a, b, product);
}

cudaError_t run_tf32(const float* x, unsigned* rounded) { return launch(tf32_kernel, 1, 32, 0, nullptr, x, rounded); }

}  // extern "C"
