// Torch's threads for the CPU kernels.
#pragma once

#include "cpu/kernels.h"

namespace flash_rwkv {

// As many workers as torch.set_num_threads allows.
cpu::Workers torch_workers();

}  // namespace flash_rwkv
