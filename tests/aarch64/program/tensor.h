// Tensors behind the handles of Torch's C functions: as much as a kernel asks of them.
#pragma once

#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

namespace little_torch {

using torch::headeronly::ScalarType;

struct Tensor {
  ScalarType dtype = ScalarType::Float;
  std::vector<int64_t> sizes, strides;
  std::shared_ptr<char> memory;

  int64_t numel() const { return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<int64_t>()); }
  int64_t element_size() const {
    return static_cast<int64_t>(aoti_torch_dtype_element_size(static_cast<int32_t>(dtype)));
  }

  // Elements from the first to the last, what lies between them included.
  int64_t span() const {
    int64_t last = 0;
    for (size_t i = 0; i < sizes.size(); ++i) last += (sizes[i] - 1) * strides[i];
    return numel() == 0 ? 0 : last + 1;
  }

  // Memory that nobody has written is NaN in every dtype.
  void allocate() {
    const size_t bytes = span() * element_size();
    memory.reset(static_cast<char*>(std::aligned_alloc(64, bytes / 64 * 64 + 64)), &std::free);
    std::memset(memory.get(), 0xff, bytes);
  }
};

inline AtenTensorHandle handle(Tensor tensor) {
  return reinterpret_cast<AtenTensorHandle>(new Tensor(std::move(tensor)));
}
inline Tensor& tensor_of(AtenTensorHandle handle) { return *reinterpret_cast<Tensor*>(handle); }

// Takes what the handle holds.
inline Tensor taken(StableIValue value) {
  const std::unique_ptr<Tensor> owned(reinterpret_cast<Tensor*>(value));
  return *owned;
}

using Kernel = void (*)(StableIValue* stack, uint64_t inputs, uint64_t outputs);

// What the module registered when it was loaded.
struct Registered {
  std::vector<std::string> schemas;
  std::map<std::string, Kernel> kernels;
};
Registered& registered();

// Of parallel loops.
extern int num_threads;

}  // namespace little_torch
