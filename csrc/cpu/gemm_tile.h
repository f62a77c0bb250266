// The inner kernel of own matrix products: a 12 x 32 tile of sum_k a[k, i] * b[k, j], in registers for the whole depth.
//
// For sums that a library product cannot end in registers, such as the square of a weight gradient. The operands are
// packed into fp32 panels `[depth][12]` and `[depth][32]`: a panel is contiguous, so that rows of a multiple of 4 KB do
// not meet in one set of the cache. bfloat16 is widened while it is packed: pairs of it in VDPBF16PS reach 80 GFLOP/s
// on a core of a Sapphire Rapids Xeon where fp32 reaches 164.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cpu/simd.h"

#ifdef PYPRUNE_X86
#include <immintrin.h>
#endif

namespace pyprune {

// 24 of 32 AVX-512 registers are sums, and so are 12 of 16 AVX2 registers in two passes of 6 x 16. Both divide 768.
constexpr int64_t kTileRows = 12, kTileColumns = 32, kTile = kTileRows * kTileColumns;

// tile: 64-byte aligned, `[12][32]`, overwritten.
using TileKernel = void (*)(float* tile, const float* a, const float* b, int64_t depth);

inline void gemm_tile_generic(float* tile, const float* a, const float* b, int64_t depth) {
  for (int64_t i = 0; i < kTileRows; i += 2)
    for (int64_t j = 0; j < kTileColumns; j += 16) {
      float sum[2][16] = {};
      for (int64_t k = 0; k < depth; ++k) {
        const float *left = a + k * kTileRows + i, *right = b + k * kTileColumns + j;
        for (int64_t c = 0; c < 16; ++c) sum[0][c] += left[0] * right[c];
        for (int64_t c = 0; c < 16; ++c) sum[1][c] += left[1] * right[c];
      }
      for (int64_t r = 0; r < 2; ++r) std::copy(sum[r], sum[r] + 16, tile + (i + r) * kTileColumns + j);
    }
}

#ifdef PYPRUNE_X86
__attribute__((target("avx2,fma"))) inline void gemm_tile_avx2(float* tile, const float* a, const float* b,
                                                               int64_t depth) {
  for (int64_t part = 0; part < 4; ++part) {
    const float *left = a + part / 2 * 6, *right = b + part % 2 * 16;
    float* out = tile + part / 2 * 6 * kTileColumns + part % 2 * 16;
    __m256 sum[6][2] = {};
    for (int64_t k = 0; k < depth; ++k, left += kTileRows, right += kTileColumns) {
      const __m256 low = _mm256_load_ps(right), high = _mm256_load_ps(right + 8);
#pragma GCC unroll 6
      for (int64_t i = 0; i < 6; ++i) {
        const __m256 v = _mm256_broadcast_ss(left + i);
        sum[i][0] = _mm256_fmadd_ps(v, low, sum[i][0]);
        sum[i][1] = _mm256_fmadd_ps(v, high, sum[i][1]);
      }
    }
#pragma GCC unroll 6
    for (int64_t i = 0; i < 6; ++i) {
      _mm256_store_ps(out + i * kTileColumns, sum[i][0]);
      _mm256_store_ps(out + i * kTileColumns + 8, sum[i][1]);
    }
  }
}

__attribute__((target("avx512f"))) inline void gemm_tile_avx512(float* tile, const float* a, const float* b,
                                                                int64_t depth) {
  __m512 sum[kTileRows][2] = {};
  for (int64_t k = 0; k < depth; ++k, a += kTileRows, b += kTileColumns) {
    const __m512 low = _mm512_load_ps(b), high = _mm512_load_ps(b + 16);
#pragma GCC unroll 12
    for (int64_t i = 0; i < kTileRows; ++i) {
      const __m512 v = _mm512_set1_ps(a[i]);
      sum[i][0] = _mm512_fmadd_ps(v, low, sum[i][0]);
      sum[i][1] = _mm512_fmadd_ps(v, high, sum[i][1]);
    }
  }
#pragma GCC unroll 12
  for (int64_t i = 0; i < kTileRows; ++i) {
    _mm512_store_ps(tile + i * kTileColumns, sum[i][0]);
    _mm512_store_ps(tile + i * kTileColumns + 16, sum[i][1]);
  }
}
#endif

inline TileKernel tile_kernel() {
#ifdef PYPRUNE_X86
  if (__builtin_cpu_supports("avx512f")) return gemm_tile_avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return gemm_tile_avx2;
#endif
  return gemm_tile_generic;
}

}  // namespace pyprune
