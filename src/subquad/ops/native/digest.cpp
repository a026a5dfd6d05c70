// Which sources the library was made from: build.py.

#include "kernels.h"

int digest() { return DIGEST; }
