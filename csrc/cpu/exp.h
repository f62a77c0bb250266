// exp and log in fp32 that a compiler vectorises: no branch, no table, no call.
#pragma once
#include <bit>
#include <cstdint>

#include "cpu/simd.h"

namespace pyprune {

// condition ? yes : no by bits. GCC 12 turns the plain expression into a branch around the work for one side, and then
// does not vectorise the loop.
PYPRUNE_INTO_CLONE float select(bool condition, float yes, float no) {
  const uint32_t mask = -static_cast<uint32_t>(condition);
  return std::bit_cast<float>((std::bit_cast<uint32_t>(yes) & mask) | (std::bit_cast<uint32_t>(no) & ~mask));
}

// e^x within 2 ulp. Results below the normal numbers (x < -87.33, also -inf) are 0, NaN stays NaN, x > 88.7 is inf.
// x = n ln 2 + r with |r| <= ln 2 / 2; the polynomial in r is a minimax fit of relative error 3e-9.
PYPRUNE_INTO_CLONE float exp_(float x) {
  // Written so that NaN fails each comparison and goes through.
  const float bounded = select(x < -88.f, -88.f, select(x > 89.f, 89.f, x));
  // Adding 1.5 * 2^23 rounds to a whole number, which then stands in the low bits.
  const float shifted = bounded * 1.44269504f + 12582912.f;
  const float n = shifted - 12582912.f;
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  float q = 1.39504892e-3f;
  q = q * r + 8.36888980e-3f;
  q = q * r + 4.16662060e-2f;
  q = q * r + 1.66665182e-1f;
  q = q * r + 0.5f;
  const float fraction = (q * r * r + r) + 1.f;
  // 2^n in two factors: n reaches 128, whose power alone is infinite.
  const int32_t exponent = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(12582912.f);
  const int32_t half = exponent >> 1;
  const float low = std::bit_cast<float>((half + 127) << 23);
  const float high = std::bit_cast<float>((exponent - half + 127) << 23);
  const float value = fraction * low * high;
  return select(x < -87.33f, 0.f, value);
}

// ln x for normal positive x, relative error below 4e-7 outside (1 - 2^-6, 1 + 2^-6) and absolute below 1e-8 inside.
// x = 2^e (1 + f) with 1 + f in [sqrt 1/2, sqrt 2); the polynomial in f is a minimax fit of relative error 3e-8.
PYPRUNE_INTO_CLONE float log_(float x) {
  const int32_t bits = std::bit_cast<int32_t>(x);
  const int32_t e = (bits - 0x3f3504f3) >> 23;
  const float f = std::bit_cast<float>(bits - (e << 23)) - 1.f;
  float q = 8.97943452e-2f;
  q = q * f - 1.44268423e-1f;
  q = q * f + 1.48837000e-1f;
  q = q * f - 1.65517941e-1f;
  q = q * f + 1.99634761e-1f;
  q = q * f - 2.50025839e-1f;
  q = q * f + 3.33339334e-1f;
  q = q * f - 4.99999821e-1f;
  return static_cast<float>(e) * 0.693147181f + (q * f * f + f);
}

}  // namespace pyprune
