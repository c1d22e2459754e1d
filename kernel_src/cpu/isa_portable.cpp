// Baseline instructions: runs on every processor of the platform.
#include "isa_table.h"
