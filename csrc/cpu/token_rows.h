// Where the rows of a segment lie in tensors of `[B, T, F]` or ragged `[N_tok, F]`.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>

#include "cpu/segments.h"
#include "cpu/simd.h"

namespace pyprune {

// Columns of a task at most. Rows are long streams to the prefetcher: with 512 columns the backward of GELU on
// [32, 128, 3072] in bfloat16 takes 10.9 ms on 2 cores, with 1536 8.0, with 4096 7.5.
constexpr int64_t kBlockColumns = 4096;

// Columns of a task: fewer only where there are fewer segments than threads. A multiple of 64, so that a column is in
// the same place of a vector, and its bits are the same, whatever the number.
inline int64_t block_columns(int64_t columns, int64_t segments) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t share = (columns * segments / threads + 63) / 64 * 64;
  return segments < threads ? std::clamp<int64_t>(share, 512, kBlockColumns) : kBlockColumns;
}

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
