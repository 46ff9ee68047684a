// The kernels of the selective scan; see scan_forward.cuh and scan_backward.cuh.
#include "scan_backward.cuh"
#include "scan_forward.cuh"
#include "scan_reduce.cuh"

// Enough blocks per multiprocessor that 16 samples of VideoMambaPro-M are resident at once.
KERNEL(scan_forward, Scan, 64, 9) { walk<READ>(q); }
KERNEL(scan_ends, Scan, 64, 9) { walk<END>(q); }
KERNEL(scan_adjoint_ends, Scan, 64, 9) { walk<ADJOINT>(q); }
KERNEL(scan_backward, Scan, 64 * BACKWARD_WARPS, BACKWARD_BLOCKS) { backward(q); }
KERNEL(scan_reduce, Reduction, REDUCE_THREADS, 1) { reduce(q); }
