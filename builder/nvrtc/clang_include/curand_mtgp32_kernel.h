// clang includes this header of another library before any source, for what it says of threadIdx; sources here do not
// need it.
#pragma once
