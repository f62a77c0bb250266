// The library's matrix product on a part of memory, one thread a product, so that its bits depend on the part's shape
// alone. Left to itself MKL splits long sums by the number of threads, even inside a parallel region: dx of 3 rows over
// 2,100 words had other bits with 2 threads than with 1 or 5.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>

// From MKL, where torch brings it along; absent (null) where another library makes the products.
extern "C" __attribute__((weak)) int MKL_Set_Num_Threads_Local(int threads);

namespace pyprune {

// fp32 in memory: element (i, j) at data[i * row + j * column].
struct Matrix {
  float* data;
  int64_t rows, columns, row, column;
};

inline torch::stable::Tensor as_tensor(const Matrix& m) {
  const int64_t sizes[2] = {m.rows, m.columns}, strides[2] = {m.row, m.column};
  return torch::stable::from_blob(m.data, {sizes, 2}, {strides, 2},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU),
                                  torch::headeronly::ScalarType::Float);
}

// out = left right. Made of plain tensors: those of the caller may be inference tensors, which other threads must not
// write to.
inline void serial_mm(const Matrix& left, const Matrix& right, const Matrix& out) {
  using torch::stable::detail::from, torch::stable::detail::to;
  std::array<StableIValue, 3> stack{from(as_tensor(left)), from(as_tensor(right)), from(as_tensor(out))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  (void)to<torch::stable::Tensor>(stack[0]);
}

// While it lives, MKL works in the calling thread alone.
class SerialLibrary {
 public:
  SerialLibrary() : before_(MKL_Set_Num_Threads_Local ? MKL_Set_Num_Threads_Local(1) : 0) {}
  ~SerialLibrary() {
    if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(before_);
  }
  SerialLibrary(const SerialLibrary&) = delete;
  SerialLibrary& operator=(const SerialLibrary&) = delete;

 private:
  int before_;
};

// f(0) ... f(count - 1), spread over the threads, with products that are not.
template <typename F>
void for_each_serially(int64_t count, const F& f) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t lo, int64_t hi) {
    const SerialLibrary serial;
    for (int64_t i = lo; i < hi; ++i) f(i);
  });
}

}  // namespace pyprune
