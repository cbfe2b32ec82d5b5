"""Layers of CMUNeXt in training on a CPU, as C++ kernels: `functions` for autograd, `library` builds them, `proof` tries what was built."""

VERSION = 3  # of the interface between Python and C++
