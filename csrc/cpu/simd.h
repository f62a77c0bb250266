// Loads of the storage types as fp32, stores to them, and the attribute that compiles a loop for every x86 level at
// once.
#pragma once
#include <bit>
#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define PYPRUNE_X86 1
// One library for every machine: the dynamic linker picks the clone. Other compilers and CPUs take the plain loop.
#define PYPRUNE_CLONES __attribute__((target_clones("avx512f", "arch=haswell", "default")))
// For loops that store 16-bit numbers: without AVX-512BW the compiler packs them at less than half the speed.
#define PYPRUNE_STORE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=haswell", "default")))
#else
#define PYPRUNE_CLONES
#define PYPRUNE_STORE_CLONES
#endif

// Inlined into each clone, whose instruction set it then takes; a call would fall back to the baseline.
#define PYPRUNE_INTO_CLONE __attribute__((always_inline)) inline

namespace pyprune {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

PYPRUNE_INTO_CLONE float load(float v) { return v; }

PYPRUNE_INTO_CLONE float load(bf16 v) { return std::bit_cast<float>(uint32_t{v.bits} << 16); }

// Integer shift plus an exact scaling by 2^112 handles normal and subnormal numbers; GCC 12 does not vectorise
// _Float16.
PYPRUNE_INTO_CLONE float load(f16 v) {
  const uint32_t sign = (v.bits & 0x8000u) << 16;
  const uint32_t magnitude = (v.bits & 0x7fffu) << 13;
  const uint32_t scaled = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t inf_or_nan = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  return std::bit_cast<float>(scaled | inf_or_nan | sign);
}

// Stores round to the nearest, ties to even; NaN stays NaN.
PYPRUNE_INTO_CLONE void store(float* p, float v) { *p = v; }

PYPRUNE_INTO_CLONE void store(bf16* p, float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  p->bits = static_cast<uint16_t>(v == v ? rounded : 0x7fc0u);
}

PYPRUNE_INTO_CLONE void store(f16* p, float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v), magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  // The last place of 0.5 is 2^-24, float16's smallest number: the addition rounds.
  const uint32_t small = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t finite = magnitude < 0x38800000u ? small : normal;
  const uint32_t large = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  p->bits = static_cast<uint16_t>((magnitude < 0x47800000u ? finite : large) | (bits >> 16 & 0x8000u));
}

}  // namespace pyprune
