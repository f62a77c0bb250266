// Sixteen values of a storage type as fp32, in functions compiled for AVX-512.
#pragma once
#include "cpu/simd.h"

#ifdef PYPRUNE_X86
#include <immintrin.h>

#define PYPRUNE_AVX512 __attribute__((target("avx512f")))

namespace pyprune {

PYPRUNE_AVX512 PYPRUNE_INTO_CLONE __m512 load16(const float* p) { return _mm512_loadu_ps(p); }

PYPRUNE_AVX512 PYPRUNE_INTO_CLONE __m512 load16(const bf16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// The hardware's conversion, which the compiler does not find by itself.
PYPRUNE_AVX512 PYPRUNE_INTO_CLONE __m512 load16(const f16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

}  // namespace pyprune
#endif
