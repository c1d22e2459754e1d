// Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c; dispatch.cpp asks for all of them.
#include "isa_table.h"
