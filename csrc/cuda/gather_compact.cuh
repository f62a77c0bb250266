// gather_compact on the GPU, free of torch: out = scale * tensor[rows][:, columns], padded with zeros, for many tensors
// in one launch.
//
// The table of tensors is a kernel argument: it lies in constant memory with no copy that the host would wait for, and
// a CUDA graph keeps it. One block owns a tile of 32 rows x 512 bytes. A thread owns 16 bytes of four output rows, so
// its column indices are loaded once for four rows, and stores are of 16 bytes. So are the loads where the columns it
// needs are neighbours: all of them, or whole heads.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace pyprune::cuda {

enum class Kind : int32_t { copy2, copy4, copy8, float32, bfloat16, float16 };

// A tensor of the plan, all pointers on the device. A vector is a matrix of one row whose columns are cut.
struct Cut {
  const void* source;
  void* out;                              // contiguous [out_rows, out_columns]
  const int64_t *rows, *columns;          // sorted, kept_rows and kept_columns of them; null keeps all
  const float *row_scale, *column_scale;  // null does not scale
  int64_t source_row;                     // stride in elements; neighbouring columns are neighbours
  int64_t kept_rows, kept_columns, out_rows, out_columns;
  int64_t first_tile;  // how many tiles the tensors before it have
  Kind kind;
  bool vector_loads, vector_stores;  // every row of the source, of the output, begins at 16 bytes
};

// 32,764 bytes are the most that a kernel may take (CUDA 12.1); LLaMA-3-8B's 32 layers have 224 tensors.
constexpr int kCuts = 256;
struct Table {
  int32_t count;
  Cut cuts[kCuts];
};
static_assert(sizeof(Table) <= 32764);

constexpr int kTileWarps = 8;
constexpr int kTileUnroll = 4;
constexpr int kTileRows = kTileWarps * kTileUnroll;

__host__ __device__ inline int64_t columns_of_a_tile(Kind kind) {
  switch (kind) {
    case Kind::copy8:
      return 32 * 2;
    case Kind::copy4:
    case Kind::float32:
      return 32 * 4;
    default:
      return 32 * 8;
  }
}

__host__ __device__ inline int64_t column_tiles(const Cut& cut) {
  const int64_t width = columns_of_a_tile(cut.kind);
  return (cut.out_columns + width - 1) / width;
}

__host__ __device__ inline int64_t tiles(const Cut& cut) {
  return (cut.out_rows + kTileRows - 1) / kTileRows * column_tiles(cut);
}

template <typename T, int V>
struct alignas(V * sizeof(T)) Lane {
  T at[V];
};

__device__ inline float times(float v, float by, float by_too) { return v * by * by_too; }
__device__ inline __half times(__half v, float by, float by_too) {
  return __float2half_rn(__half2float(v) * by * by_too);
}
__device__ inline __nv_bfloat16 times(__nv_bfloat16 v, float by, float by_too) {
  return __float2bfloat16_rn(__bfloat162float(v) * by * by_too);
}

template <typename T, bool kScaled>
__device__ __forceinline__ void copy_tile(const Cut& cut, int64_t tile) {
  constexpr int V = 16 / sizeof(T);
  const int64_t across = column_tiles(cut);
  const int64_t column = (tile % across * 32 + threadIdx.x) * V;
  const int64_t first_row = tile / across * kTileRows + threadIdx.y;
  if (column >= cut.out_columns) return;

  int64_t from[V];
#pragma unroll
  for (int v = 0; v < V; ++v)
    from[v] = column + v >= cut.kept_columns ? -1 : cut.columns ? cut.columns[column + v] : column + v;
  // Indices increase, so the last tells about all between.
  const bool together = cut.vector_loads && from[V - 1] - from[0] == V - 1 && from[0] >= 0 && from[0] % V == 0;

  Lane<T, V> values[kTileUnroll] = {};
#pragma unroll
  for (int u = 0; u < kTileUnroll; ++u) {
    const int64_t r = first_row + u * kTileWarps;
    if (r >= cut.kept_rows) continue;
    const T* row = static_cast<const T*>(cut.source) + (cut.rows ? cut.rows[r] : r) * cut.source_row;
    if (together) {
      values[u] = *reinterpret_cast<const Lane<T, V>*>(row + from[0]);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (from[v] >= 0) values[u].at[v] = row[from[v]];
    }
  }
  if constexpr (kScaled) {
#pragma unroll
    for (int u = 0; u < kTileUnroll; ++u) {
      const int64_t r = first_row + u * kTileWarps;
      if (r >= cut.kept_rows) continue;
      const float by = cut.row_scale ? cut.row_scale[r] : 1.f;
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (from[v] >= 0)
          values[u].at[v] = times(values[u].at[v], by, cut.column_scale ? cut.column_scale[column + v] : 1.f);
    }
  }
#pragma unroll
  for (int u = 0; u < kTileUnroll; ++u) {
    const int64_t r = first_row + u * kTileWarps;
    if (r >= cut.out_rows) continue;
    T* to = static_cast<T*>(cut.out) + r * cut.out_columns + column;
    if (cut.vector_stores) {
      // An intrinsic, because the compiler makes one element-wise branch of two plain ones.
      __stcs(reinterpret_cast<uint4*>(to), reinterpret_cast<const uint4&>(values[u]));
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (column + v < cut.out_columns) to[v] = values[u].at[v];
    }
  }
}

// Grid: all tiles of all tensors. Block (32, kTileWarps).
__global__ void __launch_bounds__(32 * kTileWarps, 2) gather_compact_kernel(const __grid_constant__ Table table) {
  int low = 0, high = table.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table.cuts[middle].first_tile <= blockIdx.x)
      low = middle;
    else
      high = middle - 1;
  }
  const Cut& cut = table.cuts[low];
  const int64_t tile = blockIdx.x - cut.first_tile;
  switch (cut.kind) {
    case Kind::copy2:
      return copy_tile<uint16_t, false>(cut, tile);
    case Kind::copy4:
      return copy_tile<uint32_t, false>(cut, tile);
    case Kind::copy8:
      return copy_tile<uint64_t, false>(cut, tile);
    case Kind::float32:
      return copy_tile<float, true>(cut, tile);
    case Kind::bfloat16:
      return copy_tile<__nv_bfloat16, true>(cut, tile);
    case Kind::float16:
      return copy_tile<__half, true>(cut, tile);
  }
}

// The table's tiles are below 2^31, a grid's limit: they write 16 KB each.
inline void launch_gather_compact(Table& table, cudaStream_t stream) {
  int64_t total = 0;
  for (int i = 0; i < table.count; ++i) {
    table.cuts[i].first_tile = total;
    total += tiles(table.cuts[i]);
  }
  gather_compact_kernel<<<static_cast<unsigned>(total), dim3(32, kTileWarps), 0, stream>>>(table);
}

}  // namespace pyprune::cuda
