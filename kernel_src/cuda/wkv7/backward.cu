// Backward of WKV7. With S the state before token t, S' after it and G the gradient of S' less what y_t sends back:
//   G_ij += dy_i r_j;   dsa_i = sum_j G_ij b_j;   dv_i = sum_j G_ij k_j;
//   dr_j = sum_i S'_ij dy_i;   dk_j = sum_i G_ij v_i;   db_j = sum_i G_ij sa_i;   dd_j = sum_i G_ij S_ij;
//   da_j = sum_i S_ij dsa_i;   then G_ij <- d_j G_ij + dsa_i a_j is the gradient of S.
// So the state is read with r and a, and written with k v and b sa.
#include "cuda/heads/backward.cuh"
#include "cuda/kernels.h"
#include "cuda/wkv7/recurrence.cuh"

namespace flash_rwkv::cuda {
inline namespace wkv7_backward_unit {

struct Wkv7Back {
  using Params = Wkv7Params;
  using Gradients = Wkv7Gradients;
  // What recomputing states takes comes first. Behind the plain vectors: sa, which forward has saved, and the decay.
  enum Vector {
    kK,
    kV,
    kB,
    kRecompute,
    kR = kRecompute,
    kA,
    kDy,
    kVectors,
    kSa = kVectors,
    kDecay,
    kDerivative,
    kTokenVectors
  };
  static constexpr int kSavedVectors = 1;
  enum Gradient { kDr, kDk, kDd, kDa, kDb, kGradients };
  static constexpr int kSets = 2;
  static constexpr bool kFeedback = true;  // what is read is written again

  __device__ static constexpr int written_column(int set) { return set == 0 ? kK : kB; }
  __device__ static constexpr int written_row(int set) { return set == 0 ? kV : kSa; }
  __device__ static constexpr int written_gradient(int set) { return set == 0 ? kDk : kDb; }
  __device__ static constexpr int read_column(int set) { return set == 0 ? kR : kA; }
  __device__ static constexpr int read_gradient(int set) { return set == 0 ? kDr : kDa; }

  __device__ static void token_rows_of(const Params& p, const Gradients& g, int64_t batch, int64_t begin, int64_t head,
                                       TokenRows* rows) {
    rows[kK] = token_rows(p.k, batch, begin, head);
    rows[kV] = token_rows(p.v, batch, begin, head);
    rows[kB] = token_rows(p.b, batch, begin, head);
    rows[kR] = token_rows(p.r, batch, begin, head);
    rows[kA] = token_rows(p.a, batch, begin, head);
    rows[kDy] = token_rows(g.grad_y, batch, begin, head);
  }

  __device__ static bool has_gradient(const Params&, int) { return true; }

  __device__ static const View& gradient_view(const Gradients& g, int gradient) {
    switch (gradient) {
      case kDr: return g.dr;
      case kDk: return g.dk;
      case kDd: return g.dw;
      case kDa: return g.da;
      default: return g.db;
    }
  }

  // The state through one token, which lies in shared memory.
  template <class Layout>
  __device__ __forceinline__ static void update(const float* token, int row, const Layout& at,
                                                StateTile<Layout>& state) {
    constexpr int kWidth = Layout::kWidth;
    float d[Layout::kColumns], k[Layout::kColumns], b[Layout::kColumns], v[Layout::kRows], sa[Layout::kRows];
    at.columns_of(token + kDecay * kWidth, d);
    at.columns_of(token + kK * kWidth, k);
    at.columns_of(token + kB * kWidth, b);
    elements_of(token + kV * kWidth + row, v);
    elements_of(token + kSa * kWidth + row, sa);
    wkv7_update_tile(state, state, d, k, b, v, sa);
  }

  // There are no gradients that are sums over tokens.
  template <int kRounds>
  struct TokenSums {
    __device__ void add_decays(const GroupColumns&, int) {}
    __device__ void end_of_block() {}
    template <class Shape>
    __device__ void finish(const Params&, const Gradients&, float*, bool, int, int64_t, int64_t) const {}
  };
};

}  // namespace wkv7_backward_unit

RowSplit wkv7_backward_split(const Wkv7Params& p) { return backward_split<Wkv7Back>(p); }

cudaError_t wkv7_backward(const Wkv7Params& p, const Wkv7Gradients& g, cudaStream_t stream) {
  return backward<Wkv7Back>(p, g, stream);
}

}  // namespace flash_rwkv::cuda
