// Multiple-choice knapsack: one option of every group, the highest total value whose total cost is within the budget.
//
// best[b] after a group is the maximum over its options of best_before[b - cost] + value. A run of kBins neighbouring
// budgets stays in registers over all options, so that an option costs one load, one addition and one comparison a
// vector, and the choice is written once.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/simd.h"

namespace pyprune {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr double kImpossible = -std::numeric_limits<double>::infinity();
constexpr int64_t kLanes = 8, kVectors = 4, kBins = kLanes * kVectors;
// Runs of kBins that are worth a thread: some 10 us at 49 options.
constexpr int64_t kGrain = 64;

typedef double Values __attribute__((vector_size(64)));
typedef int64_t Numbers __attribute__((vector_size(64)));

struct Option {
  double value;
  int64_t cost, number;
};

// Budgets begin .. begin + kBins - 1. `before` may be read from before[-largest cost] on. Only a better option than
// those before it is taken: the first of equals.
template <typename T>
PYPRUNE_INTO_CLONE void choose_run(double* after, T* choice, const double* before, const Option* options,
                                   int64_t count) {
  Values best[kVectors];
  Numbers taken[kVectors];
  for (int64_t v = 0; v < kVectors; ++v) best[v] = Values{} + kImpossible, taken[v] = Numbers{};
  for (int64_t o = 0; o < count; ++o) {
    const double* source = before - options[o].cost;
    for (int64_t v = 0; v < kVectors; ++v) {
      Values found;
      std::memcpy(&found, source + v * kLanes, sizeof(found));
      found += options[o].value;
      const Numbers better = found > best[v];
      best[v] = better ? found : best[v];
      taken[v] = better ? Numbers{} + options[o].number : taken[v];
    }
  }
  for (int64_t v = 0; v < kVectors; ++v) {
    std::memcpy(after + v * kLanes, &best[v], sizeof(best[v]));
    for (int64_t k = 0; k < kLanes; ++k) choice[v * kLanes + k] = static_cast<T>(taken[v][k]);
  }
}

PYPRUNE_CLONES void choose(double* after, uint8_t* choice, const double* before, const Option* options, int64_t count,
                           int64_t lo, int64_t hi) {
  for (int64_t b = lo * kBins; b < hi * kBins; b += kBins)
    choose_run(after + b, choice + b, before + b, options, count);
}

PYPRUNE_CLONES void choose(double* after, int16_t* choice, const double* before, const Option* options, int64_t count,
                           int64_t lo, int64_t hi) {
  for (int64_t b = lo * kBins; b < hi * kBins; b += kBins)
    choose_run(after + b, choice + b, before + b, options, count);
}

template <typename T>
void solve(const double* values, const int64_t* costs, const int64_t* offsets, int64_t groups, int64_t budget, T* table,
           int64_t width, int64_t* choice) {
  // Budgets below 0 stand before the first: an option that is too dear finds them impossible.
  std::vector<double> rows[2];
  for (auto& row : rows) row.assign(budget + width, kImpossible);
  std::fill(rows[0].begin() + budget, rows[0].end(), 0.0);
  std::vector<Option> options;
  for (int64_t g = 0; g < groups; ++g) {
    options.clear();
    for (int64_t o = offsets[g]; o < offsets[g + 1]; ++o)
      if (costs[o] <= budget) options.push_back({values[o], costs[o], o - offsets[g]});
    const double* before = rows[g % 2].data() + budget;
    double* after = rows[(g + 1) % 2].data() + budget;
    T* row = table + g * width;
    torch::stable::parallel_for(0, width / kBins, kGrain, [&](int64_t lo, int64_t hi) {
      choose(after, row, before, options.data(), options.size(), lo, hi);
    });
  }
  for (int64_t g = groups - 1, left = budget; g >= 0; --g) {
    choice[g] = table[g * width + left];
    left -= costs[offsets[g] + choice[g]];
  }
}

// values: float64, costs: int64, both [options]; offsets: int64 [groups + 1]; table: a workspace, uint8 or int16
// [groups, width] with width >= budget + 1 a multiple of 32; choice: int64 [groups]. Checked by
// pyprune/ops/knapsack.py, the only caller; the cheapest options fit the budget.
void knapsack(const Tensor& values, const Tensor& costs, const Tensor& offsets, int64_t budget, Tensor table,
              Tensor choice) {
  const auto run = [&](auto* rows) {
    solve(values.const_data_ptr<double>(), costs.const_data_ptr<int64_t>(), offsets.const_data_ptr<int64_t>(),
          choice.size(0), budget, rows, table.size(1), choice.mutable_data_ptr<int64_t>());
  };
  if (table.scalar_type() == ScalarType::Byte) {
    run(static_cast<uint8_t*>(table.mutable_data_ptr()));
  } else {
    run(static_cast<int16_t*>(table.mutable_data_ptr()));
  }
}

}  // namespace
}  // namespace pyprune

STABLE_TORCH_LIBRARY_FRAGMENT(pyprune_cpp, m) {
  m.def("knapsack(Tensor values, Tensor costs, Tensor offsets, int budget, Tensor(a!) table, Tensor(b!) choice) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pyprune_cpp, CPU, m) { m.impl("knapsack", TORCH_BOX(&pyprune::knapsack)); }
