// Torch's threads for the CPU kernels.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"

namespace flash_rwkv {

// As many workers as torch.set_num_threads allows, but no more than `updates` (of one element of a state by one token)
// can keep busy: waking a thread for a single decode step costs more than the step.
cpu::Workers torch_workers(int64_t updates);

}  // namespace flash_rwkv
