// The work items of a per-sample reduction on the CPU: every sample cut as common/segments.h says.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "common/segments.h"

namespace pyprune {

// `tokens` tokens of a sample, from `first` on, counted from the sample's row pointer (ragged: from the batch's). The
// result goes to the sample's row if the sample has one segment (slot < 0), else to row `slot` of a workspace.
struct Segment {
  int64_t sample, first, tokens, slot;
};

struct Segments {
  std::vector<Segment> all;
  std::vector<int64_t> counts;  // segments of every sample
  int64_t slots = 0;            // rows of the workspace

  int64_t samples() const { return counts.size(); }
};

// Offsets of a ragged batch as int64; empty for a dense one.
inline std::vector<int64_t> read_offsets(const std::optional<torch::stable::Tensor>& cu_seqlens) {
  if (!cu_seqlens) return {};
  const int64_t n = cu_seqlens->numel();
  const void* data = cu_seqlens->const_data_ptr();
  if (cu_seqlens->scalar_type() == torch::headeronly::ScalarType::Int) {
    const auto* p = static_cast<const int32_t*>(data);
    return {p, p + n};
  }
  const auto* p = static_cast<const int64_t*>(data);
  return {p, p + n};
}

// Dense: `samples` samples of `tokens` tokens. Ragged (offsets not empty): offsets.size() - 1 samples.
inline Segments cut_into_segments(int64_t samples, int64_t tokens, const std::vector<int64_t>& offsets) {
  const bool ragged = !offsets.empty();
  Segments cut;
  cut.counts.resize(ragged ? offsets.size() - 1 : samples);
  for (int64_t b = 0; b < cut.samples(); ++b) {
    const int64_t first = ragged ? offsets[b] : 0, length = ragged ? offsets[b + 1] - first : tokens;
    const int64_t count = cut.counts[b] = segment_count(length);
    for (int64_t s = 0; s < count; ++s) {
      const int64_t t = s * kSegment;
      cut.all.push_back({b, first + t, std::min(kSegment, length - t), count == 1 ? -1 : cut.slots++});
    }
  }
  return cut;
}

// Calls add(result row of sample b, workspace row, is it the sample's first) in the order of the segments, for the
// samples of more than one: the second stage, whose order does not depend on threads.
template <typename Add>
void merge_segments(const Segments& cut, const Add& add) {
  int64_t slot = 0;
  for (int64_t b = 0; b < cut.samples(); ++b) {
    if (cut.counts[b] == 1) continue;
    for (int64_t s = 0; s < cut.counts[b]; ++s) add(b, slot++, s == 0);
  }
}

// Zeros the rows of a `[tokens, columns]` output that belong to no sample.
template <typename T>
void zero_outside(T* rows, const std::vector<int64_t>& offsets, int64_t tokens, int64_t columns) {
  std::fill(rows, rows + offsets.front() * columns, T{});
  std::fill(rows + offsets.back() * columns, rows + tokens * columns, T{});
}

}  // namespace pyprune
