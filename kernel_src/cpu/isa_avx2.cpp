// Compiled with -mavx2 -mfma -mf16c; dispatch.cpp asks the processor for all of them.
#include "isa_table.h"
