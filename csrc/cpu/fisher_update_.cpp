// F[n] += sum over the rows s of (scale[s] * g[s, n])^2, summed in float64.
//
// One read of g is the floor. The rows are cut every kSegment whatever the threads, a task owns one segment and a block
// of columns, and the sums of the segments are added in their order.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "common/segments.h"
#include "cpu/simd.h"

namespace pyprune {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kColumns = 2048;  // 16 KB of sums, which stay in L1
constexpr int64_t kRows = 4;        // rows a pass, so that the sums are loaded and stored once for four

template <int64_t R, typename T>
PYPRUNE_INTO_CLONE void add_rows(double* __restrict sums, const T* __restrict g, int64_t row, const double* scale,
                                 int64_t columns) {
  for (int64_t c = 0; c < columns; ++c) {
    double sum = 0;
#pragma GCC unroll 8
    for (int64_t r = 0; r < R; ++r) {
      const double v = scale[r] * load(g[r * row + c]);
      sum += v * v;
    }
    sums[c] += sum;
  }
}

template <typename T>
PYPRUNE_INTO_CLONE void add_squares(double* sums, const T* g, int64_t row, const double* scale, int64_t rows,
                                    int64_t columns) {
  std::fill(sums, sums + columns, 0.0);
  int64_t s = 0;
  for (; s + kRows <= rows; s += kRows) add_rows<kRows>(sums, g + s * row, row, scale + s, columns);
  for (; s < rows; ++s) add_rows<1>(sums, g + s * row, row, scale + s, columns);
}

PYPRUNE_CLONES void squares(double* sums, const float* g, int64_t row, const double* scale, int64_t rows,
                            int64_t columns) {
  add_squares(sums, g, row, scale, rows, columns);
}

PYPRUNE_CLONES void squares(double* sums, const bf16* g, int64_t row, const double* scale, int64_t rows,
                            int64_t columns) {
  add_squares(sums, g, row, scale, rows, columns);
}

PYPRUNE_CLONES void squares(double* sums, const f16* g, int64_t row, const double* scale, int64_t rows,
                            int64_t columns) {
  add_squares(sums, g, row, scale, rows, columns);
}

template <typename T>
void sum_segments(const Tensor& g, const double* scale, double* partial) {
  const int64_t rows = g.size(0), columns = g.size(1), row = g.stride(0);
  const T* data = static_cast<const T*>(g.const_data_ptr());
  const int64_t blocks = (columns + kColumns - 1) / kColumns;
  torch::stable::parallel_for(0, segment_count(rows) * blocks, 1, [&](int64_t lo, int64_t hi) {
    for (int64_t task = lo; task < hi; ++task) {
      const int64_t segment = task / blocks, first = segment * kSegment, begin = task % blocks * kColumns;
      squares(partial + segment * columns + begin, data + first * row + begin, row, scale + first,
              std::min(kSegment, rows - first), std::min(kColumns, columns - begin));
    }
  });
}

template <typename T>
void add(T* sums, int64_t stride, const double* partial, int64_t segments, int64_t columns) {
  for (int64_t c = 0; c < columns; ++c) {
    double sum = 0;
    for (int64_t s = 0; s < segments; ++s) sum += partial[s * columns + c];
    sums[c * stride] = static_cast<T>(sums[c * stride] + sum);
  }
}

// F: float32 or float64 [n], any stride; g: [S, n], rows contiguous; scale: float32 [S], contiguous; partial: float64
// [segments, n], a workspace. Checked by pyprune/ops/fisher_update_.py, the only caller.
void fisher_update_(Tensor F, const Tensor& g, std::optional<Tensor> scale, Tensor partial) {
  const int64_t rows = g.size(0), columns = g.size(1), segments = segment_count(rows);
  std::vector<double> factors(rows, 1.0);
  if (scale) std::copy_n(scale->const_data_ptr<float>(), rows, factors.begin());
  double* sums = partial.mutable_data_ptr<double>();
  switch (g.scalar_type()) {
    case ScalarType::Float:
      sum_segments<float>(g, factors.data(), sums);
      break;
    case ScalarType::BFloat16:
      sum_segments<bf16>(g, factors.data(), sums);
      break;
    case ScalarType::Half:
      sum_segments<f16>(g, factors.data(), sums);
      break;
    default:
      STD_TORCH_CHECK(false, "fisher_update_: g must be float32, bfloat16 or float16");
  }
  if (F.scalar_type() == ScalarType::Double) {
    add(F.mutable_data_ptr<double>(), F.stride(0), sums, segments, columns);
  } else {
    add(F.mutable_data_ptr<float>(), F.stride(0), sums, segments, columns);
  }
}

}  // namespace
}  // namespace pyprune

STABLE_TORCH_LIBRARY_FRAGMENT(pyprune_cpp, m) {
  m.def("fisher_update_(Tensor(a!) F, Tensor g, Tensor? scale, Tensor(b!) partial) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pyprune_cpp, CPU, m) { m.impl("fisher_update_", TORCH_BOX(&pyprune::fisher_update_)); }
