"""The C++ kernels and what compiles them."""
