"""Our own runtime for CMUNeXt on CPUs: a network as steps (`program`), and the C++ that runs them, built on this machine (`library`)."""

VERSION = 1  # of the interface between the two; engine.cpp has the same
