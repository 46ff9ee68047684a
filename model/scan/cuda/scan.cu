// The kernels of the selective scan; see scan_forward.cuh and scan_backward.cuh.
#include "scan_backward.cuh"
#include "scan_forward.cuh"
#include "scan_reduce.cuh"

// Enough blocks per multiprocessor that 16 samples of VideoMambaPro-M are resident at once. On
// sm_100 and later the same source takes more registers, so fewer blocks fit without spilling.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int BLOCKS = BACKWARD_BLOCKS > 2 ? BACKWARD_BLOCKS - 1 : BACKWARD_BLOCKS;
#else
constexpr int BLOCKS = BACKWARD_BLOCKS;
#endif
KERNEL(scan_forward, Scan, 64, NP <= 16 ? 9 : NP == 32 ? 8 : 6) { walk<READ>(q); }
KERNEL(scan_ends, Scan, 64, 9) { walk<END>(q); }
KERNEL(scan_adjoint_ends, Scan, 64, 9) { walk<ADJOINT>(q); }
KERNEL(scan_backward, Scan, 64 * BACKWARD_WARPS, BLOCKS) { backward(q); }
KERNEL(scan_reduce, Reduction, REDUCE_THREADS, 1) { reduce(q); }
