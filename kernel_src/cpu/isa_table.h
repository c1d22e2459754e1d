// Instantiates every kernel for the instruction set of this translation unit.
#pragma once

#include "wkv4.h"
#include "wkv6.h"
#include "wkv7.h"

namespace flash_rwkv::cpu::FLASH_RWKV_ISA {

#define FLASH_RWKV_STRINGIFY_(x) #x
#define FLASH_RWKV_STRINGIFY(x) FLASH_RWKV_STRINGIFY_(x)

const KernelTable table = {
    FLASH_RWKV_STRINGIFY(FLASH_RWKV_ISA),
    [](const Wkv4Params& p, const Workers& workers) {
      p.k.dtype == DType::kFloat64 ? Wkv4Forward<double>::run(p, workers) : Wkv4Forward<float>::run(p, workers);
    },
    [](const Wkv4Params& p, const Wkv4Gradients& g, const Workers& workers) {
      p.k.dtype == DType::kFloat64 ? Wkv4Backward<double>::run(p, g, workers) : Wkv4Backward<float>::run(p, g, workers);
    },
    [](const Wkv6Params& p, const Workers& workers) {
      with_padded_size<Wkv6Forward>(p.r.dtype, p.head_size, p, workers);
    },
    [](const Wkv6Params& p, const Wkv6Gradients& g, const Workers& workers) {
      with_padded_size<Wkv6Backward>(p.r.dtype, p.head_size, p, g, workers);
    },
    [](const Wkv7Params& p, const Workers& workers) {
      with_padded_size<Wkv7Forward>(p.r.dtype, p.head_size, p, workers);
    },
    [](const Wkv7Params& p, const Wkv7Gradients& g, const Workers& workers) {
      with_padded_size<Wkv7Backward>(p.r.dtype, p.head_size, p, g, workers);
    },
};

}  // namespace flash_rwkv::cpu::FLASH_RWKV_ISA
