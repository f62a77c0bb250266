// How the tokens of a batch are cut into segments: the unit of work of every per-sample reduction, on CPU and GPU.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define PYPRUNE_INLINE __host__ __device__ __forceinline__
#else
#define PYPRUNE_INLINE inline
#endif

namespace pyprune {

// Samples are cut every kSegment tokens whatever the batch, the grid or the number of threads, and the partial sums are
// added in order: the bits of a sample's result do not depend on its neighbours. 512 tokens make the second pass 1/512
// of the reading and still cut one sample of 8k tokens into 16.
constexpr int64_t kSegment = 512;

// At least one, so that an empty sample has an owner that writes its zeros.
PYPRUNE_INLINE int64_t segment_count(int64_t tokens) {
  return tokens <= kSegment ? 1 : (tokens + kSegment - 1) / kSegment;
}

// First slot of sample b, which begins at token `begin` of a ragged batch, in a workspace of partial sums. Since
// ceil((e - s) / C) <= e / C - s / C + 1, the slots of two samples never overlap, and a GPU needs neither a prefix sum
// over the lengths nor a look at them from the host.
PYPRUNE_INLINE int64_t first_slot(int64_t begin, int64_t b) { return begin / kSegment + b; }

PYPRUNE_INLINE int64_t slot_count(int64_t tokens, int64_t samples) { return tokens / kSegment + samples; }

}  // namespace pyprune
