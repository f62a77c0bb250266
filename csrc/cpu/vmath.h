// Exponential, normal distribution and activations in fp32, written so that a loop over them vectorises in every clone:
// no branches, no calls, no tables. tests/ops/test_act_fwd_stats.py holds them to float64 over every 16-bit number.
#pragma once
#include <bit>
#include <cstdint>
#include <utility>

#include "cpu/simd.h"

namespace pyprune {

// e^x for x <= 0 to 1.2e-7, relative; 0 below the smallest normal number and for NaN (callers multiply by x anyway).
PYPRUNE_INTO_CLONE float exp_nonpositive(float x) {
  constexpr float kRound = 0x1.8p23f;                // adding it rounds to an integer, which is in the low bits then
  const float shifted = x * 0x1.715476p0f + kRound;  // x / ln 2
  const float k = shifted - kRound;
  // ln 2 in two parts: k times the first is exact, with or without fused multiply-add.
  const float r = (x - k * 0x1.62ep-1f) - k * 0x1.0bfbe8p-15f;
  // Minimax on |r| <= ln 2 / 2, error 3e-9.
  const float q = 0.49999994f + r * (0.16666521f + r * (0.04166839f + r * (0.00836871f + r * 0.00138146f)));
  const float e = 1.f + (r + r * r * q);
  const float scaled = std::bit_cast<float>(std::bit_cast<uint32_t>(e) + (std::bit_cast<uint32_t>(shifted) << 23));
  return x >= -87.3365f ? scaled : 0.f;
}

// An activation and its derivative.
struct Activation {
  float value, slope;
};

enum class Act { silu, gelu, gelu_tanh, relu };

// Beyond this the activations are 0 or the identity to the last bit, and 0 * inf is kept out of the formulas.
constexpr float kActLimit = 750.f;

PYPRUNE_INTO_CLONE float at_least(float x, float low) { return x < low ? low : x; }
PYPRUNE_INTO_CLONE float at_most(float x, float high) { return x > high ? high : x; }

// x * sigmoid(y), `steep` = dy/dx. With e = exp(-|y|), sigmoid(y) and sigmoid(-y) are 1 / (1 + e) and e / (1 + e):
// neither is a difference, so both are exact where they vanish.
PYPRUNE_INTO_CLONE Activation times_sigmoid(float x, float y, float steep) {
  const float e = exp_nonpositive(-__builtin_fabsf(y));
  const float large = 1.f / (1.f + e), small = e * large;
  const float s = y >= 0.f ? large : small;
  return {at_least(x, -kActLimit) * s, s + at_most(at_least(x, -kActLimit), kActLimit) * steep * (large * small)};
}

template <Act A>
PYPRUNE_INTO_CLONE Activation activate(float x) {
  if constexpr (A == Act::silu) {
    return times_sigmoid(x, x, 1.f);
  } else if constexpr (A == Act::gelu_tanh) {
    // 1 + tanh(v) = 2 sigmoid(2 v); the constant is 2 sqrt(2 / pi).
    const float near = at_most(at_least(x, -kActLimit), kActLimit), square = near * near;
    return times_sigmoid(x, 1.5957691f * near * (1.f + 0.044715f * square), 1.5957691f * (1.f + 0.134145f * square));
  } else if constexpr (A == Act::gelu) {
    // The lower tail of the normal distribution, exp(-x^2 / 2) Mills(|x|), Mills as a polynomial in 1 / (1 + 0.27 |x|)
    // without constant term: relative error 2.3e-8 over [0, 13.5], and the exponential serves the derivative too.
    const float size = at_most(__builtin_fabsf(x), kActLimit);
    const float t = 1.f / (1.f + 0.27f * size), e = exp_nonpositive(-0.5f * size * size);
    float mills = -0.12595403f + t * 0.02885555f;
    mills = 0.10683729f + t * (-0.06784597f + t * (0.16864334f + t * mills));
    mills = 0.10771954f + t * (0.10756073f + t * (0.10169066f + t * (0.0724929f + t * mills)));
    const float tail = e * (t * mills), below = x >= 0.f ? 1.f - tail : tail;
    const float low = at_least(x, -kActLimit);
    return {low * below, below + at_most(low, kActLimit) * (0.3989423f * e)};
  } else {
    return {x < 0.f ? 0.f : x, x <= 0.f ? 0.f : 1.f};
  }
}

// Calls f.template operator()<A, gated>() for the run-time values. `act` counts as ACTS of
// pyprune/ops/act_fwd_stats.py.
template <typename F>
void for_act(int64_t act, bool gated, const F& f) {
  const auto gate = [&]<Act A>() { gated ? f.template operator()<A, true>() : f.template operator()<A, false>(); };
  switch (static_cast<Act>(act)) {
    case Act::silu:
      return gate.template operator()<Act::silu>();
    case Act::gelu:
      return gate.template operator()<Act::gelu>();
    case Act::gelu_tanh:
      return gate.template operator()<Act::gelu_tanh>();
    case Act::relu:
      return gate.template operator()<Act::relu>();
  }
}

}  // namespace pyprune
