// ata and atb of hadamard_gram, tile by tile: each is made of a library product over the tokens, which stays in cache
// until it has been multiplied by its counterpart and summed over blocks. Tiles on and above the diagonal are computed,
// the others are mirrored. The tiles depend on the shapes alone, and so do the bits.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/serial_mm.h"
#include "cpu/simd.h"

namespace pyprune {
namespace {

using torch::stable::Tensor;

// Columns of the target at a time.
constexpr int64_t kTargetColumns = 256;

Matrix matrix(const Tensor& t) {
  return {static_cast<float*>(const_cast<void*>(t.const_data_ptr())), t.size(0), t.size(1), t.stride(0), t.stride(1)};
}

Matrix transposed(const Matrix& m) { return {m.data, m.columns, m.rows, m.column, m.row}; }

Matrix rows_of(const Matrix& m, int64_t first, int64_t count) {
  return {m.data + first * m.row, count, m.columns, m.row, m.column};
}

Matrix columns_of(const Matrix& m, int64_t first, int64_t count) {
  return {m.data + first * m.column, m.rows, count, m.row, m.column};
}

// sums[c] = sum over `rows` rows of left * right, whose columns are contiguous
PYPRUNE_CLONES void multiply_rows(float* __restrict sums, const float* __restrict left, const float* __restrict right,
                                  int64_t left_row, int64_t right_row, int64_t rows, int64_t columns) {
  for (int64_t c = 0; c < columns; ++c) sums[c] = left[c] * right[c];
  for (int64_t r = 1; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) sums[c] += left[r * left_row + c] * right[r * right_row + c];
}

double total(const float* v, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += v[i];
  return sum;
}

// out[j, k] = sum over group x group blocks of left * right
void sum_blocks(const Matrix& left, const Matrix& right, int64_t group, float* sums, const Matrix& out) {
  for (int64_t j = 0; j < out.rows; ++j) {
    float* const o = out.data + j * out.row;
    const float *l = left.data + j * group * left.row, *r = right.data + j * group * right.row;
    multiply_rows(group == 1 ? o : sums, l, r, left.row, right.row, group, left.columns);
    for (int64_t k = 0; group > 1 && k < out.columns; ++k) o[k] = static_cast<float>(total(sums + k * group, group));
  }
}

// square[k, j] = square[j, k] for the rows j and columns k > j of `rows` x `columns` elements from (top, left) on. In
// small squares: each line of the target is touched once.
void mirror(const Matrix& square, int64_t top, int64_t left, int64_t rows, int64_t columns) {
  constexpr int64_t kSide = 16;
  for (int64_t k0 = left; k0 < left + columns; k0 += kSide)
    for (int64_t j0 = top; j0 < top + rows; j0 += kSide)
      for (int64_t k = k0; k < std::min(k0 + kSide, left + columns); ++k)
        for (int64_t j = j0; j < std::min({j0 + kSide, top + rows, k}); ++j)
          square.data[k * square.row + j] = square.data[j * square.row + k];
}

// bands: float32 [bands, tokens, width], all n * group columns of h in bands of whole groups, the last of which may end
// early; w: float32 [n * group, d], contiguous; target: float32 [tokens, d]; ata: float32 [n, n], contiguous; atb:
// float32 [n]. Checked and made by pyprune/ops/hadamard_gram.py, the only caller.
void hadamard_gram(const Tensor& h, const Tensor& w_tensor, std::optional<Tensor> target, int64_t group,
                   Tensor ata_tensor, Tensor atb_tensor) {
  const Matrix w = matrix(w_tensor), ata = matrix(ata_tensor);
  const int64_t units = ata.rows, bands = units > 0 ? h.size(0) : 0, tokens = h.size(1), width = h.size(2),
                step = width / group;
  const int64_t parts = target ? (w.columns + kTargetColumns - 1) / kTargetColumns : 0;
  std::vector<double> part_sums(parts * units);

  // Of a band of rows: its tiles of ata from the diagonal on, then the parts of its elements of atb.
  struct Task {
    int64_t band, other, part;
  };
  std::vector<Task> tasks;
  for (int64_t i = 0; i < bands; ++i) {
    for (int64_t j = i; j < bands; ++j) tasks.push_back({i, j, -1});
    for (int64_t part = 0; part < parts; ++part) tasks.push_back({i, -1, part});
  }

  const auto band = [&](int64_t i, int64_t columns) {
    float* const data = static_cast<float*>(const_cast<void*>(h.const_data_ptr()));
    return Matrix{data + i * h.stride(0), tokens, columns, h.stride(1), h.stride(2)};
  };
  std::atomic<size_t> next{0};
  for_each_serially(std::min<int64_t>(tasks.size(), torch::stable::get_num_threads()), [&](int64_t) {
    const int64_t widest = std::max(width, kTargetColumns);
    const Buffer products = buffer(width * widest), weights = buffer(width * width), sums = buffer(widest);
    const auto in = [](const Buffer& b, int64_t rows, int64_t columns) {
      return Matrix{b.get(), rows, columns, columns, 1};
    };
    for (size_t t; (t = next++) < tasks.size();) {
      const Task& task = tasks[t];
      const int64_t top = task.band * step, rows = std::min(step, units - top);
      const Matrix h_rows = transposed(band(task.band, rows * group));
      const Matrix w_rows = rows_of(w, top * group, rows * group);
      if (task.part < 0) {
        const int64_t left = task.other * step, columns = std::min(step, units - left);
        const Matrix gram = in(products, rows * group, columns * group), weight = in(weights, gram.rows, gram.columns);
        serial_mm(h_rows, band(task.other, gram.columns), gram);
        serial_mm(w_rows, transposed(rows_of(w, left * group, gram.columns)), weight);
        const Matrix out{ata.data + top * units + left, rows, columns, units, 1};
        sum_blocks(gram, weight, group, sums.get(), out);
        mirror(ata, top, left, rows, columns);
      } else {
        const int64_t first = task.part * kTargetColumns, columns = std::min(kTargetColumns, w.columns - first);
        const Matrix product = in(products, rows * group, columns);
        serial_mm(h_rows, columns_of(matrix(*target), first, columns), product);
        for (int64_t j = 0; j < rows; ++j) {
          multiply_rows(sums.get(), product.data + j * group * columns, w_rows.data + j * group * w.row + first,
                        columns, w.row, group, columns);
          part_sums[task.part * units + top + j] = total(sums.get(), columns);
        }
      }
    }
  });

  float* const atb = atb_tensor.mutable_data_ptr<float>();
  for (int64_t j = 0; j < units; ++j) {
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += part_sums[part * units + j];
    atb[j] = static_cast<float>(sum);
  }
}

}  // namespace
}  // namespace pyprune

STABLE_TORCH_LIBRARY_FRAGMENT(pyprune_cpp, m) {
  m.def("hadamard_gram(Tensor h, Tensor w, Tensor? target, int group, Tensor(a!) ata, Tensor(b!) atb) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pyprune_cpp, CPU, m) { m.impl("hadamard_gram", TORCH_BOX(&pyprune::hadamard_gram)); }
