// The exchange loop of Kwon et al. 2022, §4.2: every unit in turn joins the kept set P, and the member whose removal
// leaves the smallest ||sum_P g||^2 goes. With K = G^T G and dots_i = <g_i, sum_P g>, that norm is constant + K_ii - 2
// dots_i, so a step costs O(n) and not O(n * samples).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/simd.h"

namespace pyprune {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr int64_t kChunk = 256;
constexpr int64_t kLanes = 32;

// One chunk of dots += joined - left, and the minimum of cost - 2 dots over it. cost is K_ii for members of P and
// infinite for the others. A fixed inner loop is what lets the compiler vectorise a minimum of doubles.
PYPRUNE_CLONES double exchange(double* __restrict dots, const double* __restrict joined, const double* __restrict left,
                               const double* __restrict cost, int64_t n) {
  double lane[kLanes];
  std::fill(lane, lane + kLanes, kNever);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) {
      const double d = dots[i + k] + (joined[i + k] - left[i + k]);
      const double s = cost[i + k] - 2 * d;
      dots[i + k] = d;
      lane[k] = s < lane[k] ? s : lane[k];
    }
  }
  for (; i < n; ++i) {
    dots[i] += joined[i] - left[i];
    lane[0] = std::min(lane[0], cost[i] - 2 * dots[i]);
  }
  return *std::min_element(lane, lane + kLanes);
}

// The first unit of the chunk whose score is the smallest: recomputed, which is cheaper than storing every score.
int64_t first_smallest(const double* dots, const double* cost, int64_t n) {
  int64_t best = 0;
  for (int64_t i = 1; i < n; ++i)
    if (cost[i] - 2 * dots[i] < cost[best] - 2 * dots[best]) best = i;
  return best;
}

// gram: float64 [n, n]; order: int64 [n], units by ascending norm, the first `keep` being P; dots: float64 [n] for that
// P. Shapes and dtypes are checked by pyprune/ops/rearrange.py, the only caller.
void rearrange(const Tensor& gram, const Tensor& order, const Tensor& dots, int64_t keep, Tensor kept) {
  const int64_t n = gram.size(0);
  const double* k = gram.const_data_ptr<double>();
  const int64_t* unit = order.const_data_ptr<int64_t>();
  std::vector<double> d(dots.const_data_ptr<double>(), dots.const_data_ptr<double>() + n);
  std::vector<double> cost(n, kNever), nothing(n, 0.0);
  for (int64_t i = 0; i < n - keep; ++i) cost[unit[i]] = k[unit[i] * n + unit[i]];

  const double* left = nothing.data();
  for (int64_t i = n - keep; i < n; ++i) {
    const int64_t u = unit[i];
    cost[u] = k[u * n + u];
    double best = kNever;
    int64_t chunk = 0;
    for (int64_t c = 0; c < n; c += kChunk) {
      const double s = exchange(&d[c], k + u * n + c, left + c, &cost[c], std::min(kChunk, n - c));
      if (s < best) best = s, chunk = c;
    }
    const int64_t r = chunk + first_smallest(&d[chunk], &cost[chunk], std::min(kChunk, n - chunk));
    cost[r] = kNever;
    left = k + r * n;
  }

  int64_t* out = kept.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < n; ++i)
    if (cost[i] == kNever) *out++ = i;
}

}  // namespace
}  // namespace pyprune

STABLE_TORCH_LIBRARY_FRAGMENT(pyprune_cpp, m) {
  m.def("rearrange(Tensor gram, Tensor order, Tensor dots, int keep, Tensor(a!) kept) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pyprune_cpp, CPU, m) { m.impl("rearrange", TORCH_BOX(&pyprune::rearrange)); }
