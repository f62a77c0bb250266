// Where the rows of a segment lie in tensors of `[B, T, F]` or ragged `[N_tok, F]`.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "cpu/segments.h"
#include "cpu/simd.h"

namespace pyprune {

// Rows of one block of columns: the first element, and how far apart tokens are.
template <typename T>
struct Rows {
  T* data = nullptr;
  int64_t token = 0;

  PYPRUNE_INTO_CLONE T* row(int64_t t) const { return data + t * token; }
};

// Of an input with any strides but 1 for the columns.
template <typename T>
Rows<const T> rows_of(const torch::stable::Tensor& t, bool ragged, const Segment& s, int64_t column) {
  const int64_t token = t.stride(ragged ? 0 : 1), sample = ragged ? 0 : s.sample * t.stride(0);
  return {static_cast<const T*>(t.const_data_ptr()) + sample + s.first * token + column, token};
}

// Of a contiguous output.
template <typename T>
Rows<T> rows_into(torch::stable::Tensor& t, bool ragged, const Segment& s, int64_t column) {
  const int64_t columns = t.size(-1), first = s.first + (ragged ? 0 : s.sample * t.size(1));
  return {static_cast<T*>(t.mutable_data_ptr()) + first * columns + column, columns};
}

}  // namespace pyprune
