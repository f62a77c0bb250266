// The exchange loop of Kwon et al. 2022, §4.2: every unit in turn joins the kept set P, and the member whose removal
// leaves the smallest ||sum_P g||^2 goes. With s = sum_P g before unit u joins, that norm without member i is constant
// + <g_i, g_i> - 2 <g_i, s> - 2 <g_i, g_u>. Who joins is known beforehand, so the last term is a matrix product for a
// batch of joiners at a time, and <g_i, s> only changes when another unit than u leaves. K = g^T g is never formed.
//
// Every inner product is one chain of additions over the samples in their order, whatever the unit's place: equal
// columns have equal scores to the bit, and ties fall on the lowest unit.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <limits>
#include <new>
#include <vector>

#include "cpu/simd.h"

namespace pyprune {
namespace {

using torch::stable::Tensor;

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr int64_t kWide = 16;   // columns of a panel: [samples][kWide], contiguous
constexpr int64_t kBatch = 32;  // joiners whose products are computed together: two panels
constexpr int64_t kRows = 4;    // of them at a time: 8 accumulators of 8 doubles
constexpr int64_t kChunk = 16;  // panels whose minimum is found before the index is looked for

typedef double Vector __attribute__((vector_size(64)));
constexpr int64_t kLanes = 8, kVectors = kWide / kLanes;

// out[r][k] = <joiner first + r, column k> for every column of one panel and kRows joiners of one panel.
PYPRUNE_INTO_CLONE void multiply_panel(double* out, int64_t out_row, const double* joiners, const double* panel,
                                       int64_t samples) {
  Vector sums[kRows][kVectors] = {};
  for (int64_t t = 0; t < samples; ++t) {
    const Vector* p = reinterpret_cast<const Vector*>(panel + t * kWide);
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t v = 0; v < kVectors; ++v) sums[r][v] += joiners[t * kWide + r] * p[v];
  }
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t v = 0; v < kVectors; ++v) reinterpret_cast<Vector*>(out + r * out_row)[v] = sums[r][v];
}

// products[b][i] = <joiner b, column i> over the panels [lo, hi)
PYPRUNE_CLONES void multiply(double* products, int64_t row, const double* joiners, const double* columns,
                             int64_t samples, int64_t lo, int64_t hi) {
  for (int64_t p = lo; p < hi; ++p)
    for (int64_t b = 0; b < kBatch; b += kRows)
      multiply_panel(products + b * row + p * kWide, row, joiners + b / kWide * samples * kWide + b % kWide,
                     columns + p * samples * kWide, samples);
}

// dots[i] = <column i, s> over the panels [lo, hi)
PYPRUNE_CLONES void project(double* dots, const double* s, const double* columns, int64_t samples, int64_t lo,
                            int64_t hi) {
  for (int64_t p = lo; p < hi; ++p) {
    const double* panel = columns + p * samples * kWide;
    Vector sums[kVectors] = {};
    for (int64_t t = 0; t < samples; ++t)
      for (int64_t v = 0; v < kVectors; ++v) sums[v] += s[t] * reinterpret_cast<const Vector*>(panel + t * kWide)[v];
    for (int64_t v = 0; v < kVectors; ++v) reinterpret_cast<Vector*>(dots + p * kWide)[v] = sums[v];
  }
}

// The smallest cost - 2 product over n columns, n a multiple of kWide.
PYPRUNE_CLONES double smallest(const double* cost, const double* product, int64_t n) {
  Vector least[kVectors];
  for (Vector& v : least) v = Vector{} + kNever;
  for (int64_t i = 0; i < n; i += kWide) {
    for (int64_t v = 0; v < kVectors; ++v) {
      const Vector score =
          reinterpret_cast<const Vector*>(cost + i)[v] - 2 * reinterpret_cast<const Vector*>(product + i)[v];
      least[v] = score < least[v] ? score : least[v];
    }
  }
  const double* lanes = reinterpret_cast<const double*>(least);
  return *std::min_element(lanes, lanes + kWide);
}

PYPRUNE_CLONES void reprice(double* __restrict cost, const double* norm, const double* dots, int64_t n) {
  for (int64_t i = 0; i < n; ++i) cost[i] = cost[i] == kNever ? kNever : norm[i] - 2 * dots[i];
}

struct Aligned {
  explicit Aligned(int64_t n) : data(static_cast<double*>(::operator new(n * 8, std::align_val_t{64}))) {
    std::fill(data, data + n, 0.0);
  }
  ~Aligned() { ::operator delete(data, std::align_val_t{64}); }
  Aligned(const Aligned&) = delete;
  double* const data;
};

// The members of P, one slot each, and behind them the joiners of a batch, side by side in panels.
class Exchange {
 public:
  Exchange(const double* units, int64_t samples, int64_t members, const double* total)
      : units_(units),
        samples_(samples),
        first_((members + kWide - 1) / kWide * kWide),
        slots_(first_ + kBatch),
        columns_(slots_ * samples),
        products_(slots_ * kBatch),
        dots_(slots_),
        cost_(slots_),
        norm_(slots_),
        unit_(slots_, -1),
        total_(total, total + samples) {
    std::fill(cost_.data, cost_.data + slots_, kNever);
  }

  void start(const int64_t* members, int64_t count) {
    place(0, members, count);
    refresh();
    for (int64_t i = 0; i < count; ++i) enter(i);
  }

  // Lets up to kBatch units join in turn.
  void join(const int64_t* joiners, int64_t count) {
    place(first_, joiners, count);
    const double* batch = columns_.data + first_ * samples_;
    torch::stable::parallel_for(0, slots_ / kWide, grain(kBatch), [&](int64_t lo, int64_t hi) {
      multiply(products_.data, slots_, batch, columns_.data, samples_, lo, hi);
    });
    project(dots_.data + first_, total_.data(), batch, samples_, 0, kBatch / kWide);
    left_.clear();
    for (int64_t b = 0; b < count; ++b) {
      const int64_t own = first_ + b, leaves = (enter(own), worst(products_.data + b * slots_));
      cost_.data[leaves] = kNever;
      if (leaves == own) continue;
      for (int64_t t = 0; t < samples_; ++t) total_[t] = total_[t] + at(own, t) - at(leaves, t);
      left_.push_back(leaves);
      refresh();
    }
    settle(count);
  }

  void members(std::vector<bool>& pruned) const {
    for (int64_t i = 0; i < slots_; ++i)
      if (cost_.data[i] != kNever) pruned[unit_[i]] = true;
  }

 private:
  double& at(int64_t slot, int64_t sample) {
    return columns_.data[(slot / kWide * samples_ + sample) * kWide + slot % kWide];
  }

  // Panels to a thread at least, where each is multiplied with `rows` rows: 2^19 products, some 20 us.
  int64_t grain(int64_t rows) const { return std::max<int64_t>(1, (1 << 19) / (rows * kWide * samples_ + 1)); }

  void place(int64_t slot, const int64_t* units, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      double norm = 0;
      for (int64_t t = 0; t < samples_; ++t) {
        const double v = at(slot + i, t) = units_[units[i] * samples_ + t];
        norm += v * v;
      }
      norm_.data[slot + i] = norm;
      unit_[slot + i] = units[i];
    }
  }

  void enter(int64_t slot) { cost_.data[slot] = norm_.data[slot] - 2 * dots_.data[slot]; }

  // After the sum over P has changed.
  void refresh() {
    torch::stable::parallel_for(0, slots_ / kWide, grain(1), [&](int64_t lo, int64_t hi) {
      project(dots_.data, total_.data(), columns_.data, samples_, lo, hi);
    });
    reprice(cost_.data, norm_.data, dots_.data, slots_);
  }

  int64_t worst(const double* product) {
    const double* cost = cost_.data;
    double least = kNever;
    least_.clear();
    for (int64_t i = 0; i < slots_; i += kChunk * kWide) {
      least_.push_back(smallest(cost + i, product + i, std::min(kChunk * kWide, slots_ - i)));
      least = std::min(least, least_.back());
    }
    int64_t best = -1;
    for (size_t c = 0; c < least_.size(); ++c) {
      if (least_[c] != least) continue;
      const int64_t begin = c * kChunk * kWide, end = std::min(begin + kChunk * kWide, slots_);
      for (int64_t i = begin; i < end; ++i)
        if (cost[i] - 2 * product[i] == least && (best < 0 || unit_[i] < unit_[best])) best = i;
    }
    return best;
  }

  // The joiners that stayed take the slots of those that left.
  void settle(int64_t count) {
    for (int64_t b = 0; b < count; ++b) {
      const int64_t from = first_ + b;
      if (cost_.data[from] == kNever) continue;
      while (left_.back() >= first_) left_.pop_back();  // joined and left within the batch
      const int64_t to = left_.back();
      left_.pop_back();
      for (int64_t t = 0; t < samples_; ++t) at(to, t) = at(from, t);
      unit_[to] = unit_[from], norm_.data[to] = norm_.data[from], cost_.data[to] = cost_.data[from];
      cost_.data[from] = kNever;
    }
  }

  const double* units_;
  const int64_t samples_, first_, slots_;
  Aligned columns_, products_, dots_, cost_, norm_;  // cost: norm - 2 dots of members of P, infinite for the others
  std::vector<int64_t> unit_, left_;
  std::vector<double> total_, least_;
};

// units: float64 [n, samples], contiguous; order: int64 [n], units by ascending norm, the first n - keep being P;
// total: float64 [samples], the sum over P. Checked by pyprune/ops/rearrange.py, the only caller; 0 < keep < n.
void rearrange(const Tensor& units, const Tensor& order, const Tensor& total, int64_t keep, Tensor kept) {
  const int64_t n = units.size(0), samples = units.size(1), members = n - keep;
  const int64_t* unit = order.const_data_ptr<int64_t>();
  Exchange exchange(units.const_data_ptr<double>(), samples, members, total.const_data_ptr<double>());
  exchange.start(unit, members);
  for (int64_t i = members; i < n; i += kBatch) exchange.join(unit + i, std::min(kBatch, n - i));
  std::vector<bool> pruned(n);
  exchange.members(pruned);
  int64_t* out = kept.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < n; ++i)
    if (!pruned[i]) *out++ = i;
}

}  // namespace
}  // namespace pyprune

STABLE_TORCH_LIBRARY_FRAGMENT(pyprune_cpp, m) {
  m.def("rearrange(Tensor units, Tensor order, Tensor total, int keep, Tensor(a!) kept) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pyprune_cpp, CPU, m) { m.impl("rearrange", TORCH_BOX(&pyprune::rearrange)); }
