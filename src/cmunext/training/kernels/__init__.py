"""Layers of CMUNeXt in training on a CPU, as C++ kernels: `choice` says which layers, `functions` is for autograd, `interface` for ctypes,
`library` builds them, `proof` tries what was built."""

VERSION = 3  # of the interface between Python and C++
