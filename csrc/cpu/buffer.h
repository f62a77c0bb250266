#pragma once
#include <cstdint>
#include <memory>
#include <new>

namespace pyprune {

// Numbers from the start of a cache line on, not initialised.
using Buffer = std::unique_ptr<float[], void (*)(float*)>;

inline Buffer buffer(int64_t count) {
  constexpr std::align_val_t line{64};
  return {static_cast<float*>(::operator new[](count * sizeof(float), line)),
          [](float* p) { ::operator delete[](p, line); }};
}

}  // namespace pyprune
