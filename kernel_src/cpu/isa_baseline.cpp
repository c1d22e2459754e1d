// Baseline instructions, which every processor of the platform has: NEON on aarch64, else what the compiler makes of
// its own vectors.
#include "isa_table.h"
