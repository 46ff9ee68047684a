"""CUDA C++ kernels, compiled at run time; nothing here is imported before a backend asks for it."""
