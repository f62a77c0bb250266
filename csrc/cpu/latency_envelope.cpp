// envelope[i] = min over j >= i of latency[j], and the smallest such j: one pass over each row from its end.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <limits>

namespace pyprune {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
void scan(const Tensor& latency, Tensor& envelope, Tensor& index) {
  const T* in = latency.const_data_ptr<T>();
  T* least = envelope.mutable_data_ptr<T>();
  int64_t* where = index.mutable_data_ptr<int64_t>();
  const int64_t n = latency.size(1);
  const int64_t grain = std::max<int64_t>(1, 16384 / n);
  torch::stable::parallel_for(0, latency.size(0), grain, [&](int64_t lo, int64_t hi) {
    for (int64_t row = lo; row < hi; ++row) {
      T best = std::numeric_limits<T>::infinity();
      int64_t at = n - 1;
      for (int64_t i = n - 1; i >= 0; --i) {
        const T here = in[row * n + i];
        if (here <= best) best = here, at = i;
        least[row * n + i] = best;
        where[row * n + i] = at;
      }
    }
  });
}

// latency, envelope: float32 or float64 [rows, n], index: int64, all contiguous. Checked by
// pyprune/ops/latency_envelope.py, the only caller.
void latency_envelope(const Tensor& latency, Tensor envelope, Tensor index) {
  if (latency.scalar_type() == ScalarType::Double) {
    scan<double>(latency, envelope, index);
  } else {
    scan<float>(latency, envelope, index);
  }
}

}  // namespace
}  // namespace pyprune

STABLE_TORCH_LIBRARY_FRAGMENT(pyprune_cpp, m) {
  m.def("latency_envelope(Tensor latency, Tensor(a!) envelope, Tensor(b!) index) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pyprune_cpp, CPU, m) { m.impl("latency_envelope", TORCH_BOX(&pyprune::latency_envelope)); }
