// The fused half of hadamard_gram: out[j, k] = sum over a x a blocks of left * right. The matrix products that make
// left and right are library calls; this reads both once, where torch writes and reads their product and reduces it
// along two axes.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

#include "cpu/simd.h"

namespace pyprune {
namespace {

using torch::stable::Tensor;

// sums[c] = sum over `rows` rows of left * right
PYPRUNE_CLONES void multiply_rows(float* __restrict sums, const float* __restrict left, const float* __restrict right,
                                  int64_t left_row, int64_t right_row, int64_t rows, int64_t columns) {
  for (int64_t c = 0; c < columns; ++c) sums[c] = left[c] * right[c];
  for (int64_t r = 1; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) sums[c] += left[r * left_row + c] * right[r * right_row + c];
}

// left, right: float32 [m * group, k * group], rows contiguous; out: float32 [m, k], rows contiguous. Checked by
// pyprune/ops/hadamard_gram.py, the only caller.
void blocksum_(const Tensor& left, const Tensor& right, int64_t group, Tensor out) {
  const int64_t m = out.size(0), k = out.size(1), columns = k * group;
  const float *l = left.const_data_ptr<float>(), *r = right.const_data_ptr<float>();
  float* o = out.mutable_data_ptr<float>();
  const int64_t l_row = left.stride(0), r_row = right.stride(0), o_row = out.stride(0);
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, columns * group));
  torch::stable::parallel_for(0, m, grain, [&](int64_t lo, int64_t hi) {
    std::vector<float> sums(group > 1 ? columns : 0);
    for (int64_t j = lo; j < hi; ++j) {
      const float *lj = l + j * group * l_row, *rj = r + j * group * r_row;
      if (group == 1) {
        multiply_rows(o + j * o_row, lj, rj, l_row, r_row, 1, columns);
        continue;
      }
      multiply_rows(sums.data(), lj, rj, l_row, r_row, group, columns);
      for (int64_t c = 0; c < k; ++c) {
        double sum = 0;
        for (int64_t i = 0; i < group; ++i) sum += sums[c * group + i];
        o[j * o_row + c] = static_cast<float>(sum);
      }
    }
  });
}

}  // namespace
}  // namespace pyprune

STABLE_TORCH_LIBRARY_FRAGMENT(pyprune_cpp, m) {
  m.def("blocksum_(Tensor left, Tensor right, int group, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pyprune_cpp, CPU, m) { m.impl("blocksum_", TORCH_BOX(&pyprune::blocksum_)); }
