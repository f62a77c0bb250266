// prod_reduce on the GPU, free of torch: out[p, b, c] = sum_t x[b, t, c] * y[p, b, t, c], then a fold of columns into
// groups.
//
// One block owns (segment of a sample, block of columns, up to four probes that share x in registers). Each thread
// keeps V neighbouring columns in registers and reads 16 bytes of x and y per row; eight warps take every eighth row
// and are added in order through shared memory. No atomics, and the cut into segments depends on the sample alone:
// deterministic and batch-invariant. The host never reads the offsets.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "common/segments.h"

namespace pyprune::cuda {

constexpr int kWarps = 8;
// Rows in flight per thread: 8 loads of 16 bytes for one probe, 10 for four; 64 and 80 KB per SM at two blocks.
template <int P>
constexpr int kUnroll = P == 1 ? 4 : 2;
constexpr int kProbes = 4;

struct Rows {
  const void *x, *y;
  int64_t x_sample, x_token, y_sample, y_token;  // strides in elements
  int64_t y_probe, probes;
  int64_t samples, tokens, columns;  // tokens: of one sample, or of the whole ragged batch
  const void* cu_seqlens;            // null for a dense batch
  bool wide_offsets;                 // int64 and not int32

  __device__ int64_t offset(int64_t b) const {
    return wide_offsets ? static_cast<const int64_t*>(cu_seqlens)[b] : static_cast<const int32_t*>(cu_seqlens)[b];
  }
};

struct Place {
  int64_t sample, first, length, segment;  // first: the sample's first token within its row pointer
};

// Which segment of which sample a slot of the workspace stands for.
__device__ inline Place locate(const Rows& rows, int64_t slot) {
  if (rows.cu_seqlens == nullptr) {
    const int64_t count = segment_count(rows.tokens);
    return {slot / count, 0, rows.tokens, slot % count};
  }
  int64_t low = 0, high = rows.samples - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (first_slot(rows.offset(middle), middle) <= slot)
      low = middle;
    else
      high = middle - 1;
  }
  const int64_t first = rows.offset(low);
  return {low, first, rows.offset(low + 1) - first, slot - first_slot(first, low)};
}

template <typename T, int V>
struct alignas(V * sizeof(T)) Pack {
  T at[V];
};

__device__ inline float widen(float v) { return v; }
__device__ inline float widen(__half v) { return __half2float(v); }
__device__ inline float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

// Grid (slots * blocks of P probes, column blocks of 32 * V), block (32, kWarps). The probe blocks of a slot are
// neighbours, so that x comes from L2 for all but one. A probe's sums are added in the same order for any P.
template <typename T, int V, int P>
__global__ void __launch_bounds__(32 * kWarps, 2)
    prod_reduce_kernel(Rows rows, int64_t slots, float* out, float* partial) {
  const int64_t probe_blocks = (rows.probes + P - 1) / P;
  const int64_t slot = blockIdx.x / probe_blocks, probe = blockIdx.x % probe_blocks * P;
  const Place place = locate(rows, slot);
  const int64_t begin = place.segment * kSegment;
  // A ragged batch has more slots than segments. A sample's first slot is always used: it writes an empty one's zeros.
  if (begin >= place.length && place.segment != 0) return;
  const int64_t left = place.length - begin;
  const int count = static_cast<int>(left < kSegment ? left : kSegment);
  const int64_t column = (int64_t{blockIdx.y} * 32 + threadIdx.x) * V;

  float acc[P][V] = {};
  if (column < rows.columns) {
    constexpr int U = kUnroll<P>;
    const int64_t token = place.first + begin + threadIdx.y;
    const T* x = static_cast<const T*>(rows.x) + place.sample * rows.x_sample + token * rows.x_token + column;
    const T* y[P];
#pragma unroll
    for (int p = 0; p < P; ++p) {
      // The last block may have probes left over: it reads its first one in their place and does not write them.
      const int64_t here = probe + p < rows.probes ? probe + p : probe;
      y[p] = static_cast<const T*>(rows.y) + here * rows.y_probe + place.sample * rows.y_sample + token * rows.y_token +
             column;
    }
    const int64_t x_step = kWarps * rows.x_token, y_step = kWarps * rows.y_token;
    int t = threadIdx.y;
    for (; t + (U - 1) * kWarps < count; t += U * kWarps) {
      Pack<T, V> a[U], b[P][U];
#pragma unroll
      for (int u = 0; u < U; ++u) {
        a[u] = *reinterpret_cast<const Pack<T, V>*>(x + u * x_step);
#pragma unroll
        for (int p = 0; p < P; ++p) b[p][u] = *reinterpret_cast<const Pack<T, V>*>(y[p] + u * y_step);
      }
#pragma unroll
      for (int u = 0; u < U; ++u)
#pragma unroll
        for (int p = 0; p < P; ++p)
#pragma unroll
          for (int v = 0; v < V; ++v) acc[p][v] += widen(a[u].at[v]) * widen(b[p][u].at[v]);
      x += U * x_step;
#pragma unroll
      for (int p = 0; p < P; ++p) y[p] += U * y_step;
    }
    for (; t < count; t += kWarps, x += x_step) {
      const Pack<T, V> a = *reinterpret_cast<const Pack<T, V>*>(x);
#pragma unroll
      for (int p = 0; p < P; ++p) {
        const Pack<T, V> b = *reinterpret_cast<const Pack<T, V>*>(y[p]);
#pragma unroll
        for (int v = 0; v < V; ++v) acc[p][v] += widen(a.at[v]) * widen(b.at[v]);
        y[p] += y_step;
      }
    }
  }

  // [warp][v][lane]: neighbouring lanes touch neighbouring banks.
  __shared__ float sums[P][kWarps][V][32];
#pragma unroll
  for (int p = 0; p < P; ++p)
#pragma unroll
    for (int v = 0; v < V; ++v) sums[p][threadIdx.y][v][threadIdx.x] = acc[p][v];
  __syncthreads();
  const bool whole = place.length <= kSegment;
  float* dest = whole ? out + (probe * rows.samples + place.sample) * rows.columns
                      : partial + (probe * slots + slot) * rows.columns;
  const int64_t next_probe = (whole ? rows.samples : slots) * rows.columns;
#pragma unroll
  for (int p = 0; p < P; ++p) {
    if (probe + p >= rows.probes) return;
    for (int i = threadIdx.y * 32 + threadIdx.x; i < 32 * V; i += 32 * kWarps) {
      float sum = 0.f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += sums[p][w][i % V][i / V];
      const int64_t c = int64_t{blockIdx.y} * 32 * V + i;
      if (c < rows.columns) dest[p * next_probe + c] = sum;
    }
  }
}

// Grid (samples, column blocks of 256, probes): adds the partial sums of samples with more than one segment, in order.
__global__ void add_segments_kernel(Rows rows, int64_t slots, const float* partial, float* out) {
  const int64_t b = blockIdx.x, c = int64_t{blockIdx.y} * 256 + threadIdx.x;
  const bool ragged = rows.cu_seqlens != nullptr;
  const int64_t first = ragged ? rows.offset(b) : 0, length = ragged ? rows.offset(b + 1) - first : rows.tokens;
  if (length <= kSegment || c >= rows.columns) return;
  const int64_t count = segment_count(length), slot = ragged ? first_slot(first, b) : b * count;
  partial += blockIdx.z * slots * rows.columns;
  float sum = 0.f;
  for (int64_t s = 0; s < count; ++s) sum += partial[(slot + s) * rows.columns + c];
  out[(blockIdx.z * rows.samples + b) * rows.columns + c] = sum;
}

// Grid (samples, output blocks of kWarps), block (32, kWarps): a warp sums the columns of one output. They are
// neighbours, or congruent modulo the number of outputs.
__global__ void fold_kernel(const float* sums, float* out, int64_t columns, int64_t outputs, bool modulus) {
  const int64_t b = blockIdx.x, j = int64_t{blockIdx.y} * kWarps + threadIdx.y;
  if (j >= outputs) return;
  const int64_t terms = columns / outputs;
  float sum = 0.f;
  for (int64_t k = threadIdx.x; k < terms; k += 32)
    sum += sums[b * columns + (modulus ? k * outputs + j : j * terms + k)];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  if (threadIdx.x == 0) out[b * outputs + j] = sum;
}

inline unsigned blocks(int64_t n, int64_t size) { return static_cast<unsigned>((n + size - 1) / size); }

template <typename T, int V, int P>
void launch_rows(const Rows& rows, int64_t slots, float* out, float* partial, cudaStream_t stream) {
  const dim3 grid(blocks(rows.probes, P) * static_cast<unsigned>(slots), blocks(rows.columns, 32 * V));
  prod_reduce_kernel<T, V, P><<<grid, dim3(32, kWarps), 0, stream>>>(rows, slots, out, partial);
}

// sums: [probes, samples, columns]; partial: [probes, slots, columns], unused when no sample can have more than
// kSegment tokens.
template <typename T>
void launch_prod_reduce(const Rows& rows, int64_t slots, float* sums, float* partial, cudaStream_t stream) {
  constexpr int kVector = 16 / sizeof(T);
  const auto bits = reinterpret_cast<uintptr_t>(rows.x) | reinterpret_cast<uintptr_t>(rows.y);
  const int64_t counts = rows.columns | rows.x_sample | rows.x_token | rows.y_sample | rows.y_token | rows.y_probe;
  const bool vectors = bits % 16 == 0 && counts % kVector == 0, alone = rows.probes == 1;
  const auto launch = vectors ? (alone ? launch_rows<T, kVector, 1> : launch_rows<T, kVector, kProbes>)
                              : (alone ? launch_rows<T, 1, 1> : launch_rows<T, 1, kProbes>);
  launch(rows, slots, sums, partial, stream);
  if (rows.tokens <= kSegment) return;
  const dim3 grid(rows.samples, blocks(rows.columns, 256), rows.probes);
  add_segments_kernel<<<grid, 256, 0, stream>>>(rows, slots, partial, sums);
}

inline void launch_fold(const float* sums, float* out, int64_t samples, int64_t columns, int64_t outputs, bool modulus,
                        cudaStream_t stream) {
  fold_kernel<<<dim3(samples, blocks(outputs, kWarps)), dim3(32, kWarps), 0, stream>>>(sums, out, columns, outputs,
                                                                                       modulus);
}

}  // namespace pyprune::cuda
