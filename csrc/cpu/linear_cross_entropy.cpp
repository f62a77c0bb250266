// The three steps of linear_cross_entropy on some rows: logits = x weight^T, rows of logits become rows of their loss's
// gradient in place, dx = gradient weight. The products are library calls on fixed blocks of words. The step between
// them makes three passes over a row, which stays in L2 (30,522 words are 122 KB), where log_softmax and its gradient
// in torch make six over memory.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

#include "cpu/exp.h"
#include "cpu/serial_mm.h"
#include "cpu/simd.h"

namespace pyprune {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// In the order of TARGETS in pyprune/ops/linear_cross_entropy.py.
enum Target : int64_t { kLabels, kSampled, kMaxLogit, kKl, kProbe };

constexpr float kNever = -std::numeric_limits<float>::infinity();
// A fixed inner loop is what lets the compiler vectorise reductions of floats: four vectors of AVX-512.
constexpr int64_t kLanes = 64;
// Lanes are added up in double after so many columns.
constexpr int64_t kBlock = 4096;

double total(const float* lane) {
  double sum = 0;
  for (int64_t k = 0; k < kLanes; ++k) sum += lane[k];
  return sum;
}

// The noise of column `column` in a row with this key: 32 bits, each a function of all of key and column. The first two
// multiplications spread the column, the second half of the key goes in between, so that no two rows' sequences are
// shifts of one another. The same steps are in triton_kernels/linear_cross_entropy.py and in the reference.
PYPRUNE_INTO_CLONE uint32_t noise(uint32_t column, uint32_t key_low, uint32_t key_high) {
  uint32_t h = column ^ key_low;
  h = (h ^ (h >> 16)) * 0x21f0aaadu;
  h = (h ^ (h >> 15)) + key_high;
  h *= 0x735a2d97u;
  h = (h ^ (h >> 15)) * 0x31848babu;
  return h ^ (h >> 16);
}

// Uniform in (0, 1), from 31 bits of noise.
PYPRUNE_INTO_CLONE float uniform(uint32_t h) {
  return (static_cast<float>(static_cast<int32_t>(h >> 1)) + 0.5f) * 0x1p-31f;
}

// Exponentially distributed: -log(1 - u). Both ends keep their relative precision, which decides over rare words.
PYPRUNE_INTO_CLONE float exponential(uint32_t h) {
  const float u = uniform(h);
  const float series = u + u * u * (0.5f + u * (1.f / 3.f));
  return select(u < 0x1p-6f, series, -log_(uniform(~h)));
}

PYPRUNE_CLONES float largest(const float* __restrict row, int64_t n) {
  float lane[kLanes];
  std::fill(lane, lane + kLanes, kNever);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t k = 0; k < kLanes; ++k) lane[k] = row[i + k] > lane[k] ? row[i + k] : lane[k];
  for (int64_t k = 0; i < n; ++i, ++k) lane[k] = row[i] > lane[k] ? row[i] : lane[k];
  return *std::max_element(lane, lane + kLanes);
}

PYPRUNE_CLONES bool any_nan(const float* __restrict row, int64_t n) {
  uint32_t any = 0;
  for (int64_t i = 0; i < n; ++i) any |= row[i] != row[i];
  return any != 0;
}

// The largest logit, or NaN as torch has it, and the first column where it stands.
float largest_at(const float* row, int64_t n, int64_t& at) {
  const bool nan = any_nan(row, n);
  const float top = nan ? std::numeric_limits<float>::quiet_NaN() : largest(row, n);
  at = std::find_if(row, row + n, [&](float v) { return nan ? v != v : v == top; }) - row;
  return top;
}

PYPRUNE_CLONES void add(float* __restrict row, const float* __restrict bias, int64_t n) {
  for (int64_t i = 0; i < n; ++i) row[i] += bias[i];
}

PYPRUNE_CLONES void exponentiate_block(float* __restrict row, float top, float scale, float* __restrict lane,
                                       int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) {
      row[i + k] = exp_((row[i + k] - top) * scale);
      lane[k] += row[i + k];
    }
  }
  for (int64_t k = 0; i < n; ++i, ++k) {
    row[i] = exp_((row[i] - top) * scale);
    lane[k] += row[i];
  }
}

// row = exp((row - top) * scale); the sum of it
double exponentiate(float* row, float top, float scale, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i += kBlock) {
    float lane[kLanes] = {};
    exponentiate_block(row + i, top, scale, lane, std::min(kBlock, n - i));
    sum += total(lane);
  }
  return sum;
}

// The column of the largest weight / E, E exponentially distributed: column c wins with probability weight[c] / sum.
// That is Gumbel-max, with the exponential that has been taken already. The lowest column wins ties.
//
// E > u spares nearly all logarithms and divisions: who has weight <= u best cannot win, and after j blocks one in j
// still has somebody who can. Drawing adds 9 us to a row of 30,522 words on 2 threads, and 22 us without this.
PYPRUNE_CLONES int64_t race(const float* __restrict weight, uint32_t low, uint32_t high, int64_t n) {
  const int32_t columns = static_cast<int32_t>(n), lanes = static_cast<int32_t>(kLanes);
  float best = 0;
  int32_t at = 0;
  for (int32_t i = 0; i < columns; i += lanes) {
    const int32_t here = std::min(lanes, columns - i);
    // A little lower, because u best is rounded.
    const float bar = best * 0.999999f;
    uint32_t any = 0;
    for (int32_t k = 0; k < here; ++k) any |= weight[i + k] > uniform(noise(i + k, low, high)) * bar;
    if (!any) continue;
    for (int32_t k = 0; k < here; ++k) {
      const uint32_t h = noise(i + k, low, high);
      if (!(weight[i + k] > uniform(h) * bar)) continue;
      const float score = weight[i + k] / exponential(h);
      if (score > best) {
        best = score;
        at = i + k;
      }
    }
  }
  return at;
}

PYPRUNE_CLONES void multiply(float* __restrict row, float factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) row[i] *= factor;
}

// Cross-entropy with a label, or with one that is drawn: gradient p - e_label.
double given_or_drawn(float* row, int64_t n, int64_t& label, const uint64_t* key) {
  const float top = largest(row, n);
  const double given = key ? 0. : double{row[label]} - top;
  const double sum = exponentiate(row, top, 1.f, n);
  if (key) label = race(row, static_cast<uint32_t>(*key), static_cast<uint32_t>(*key >> 32), n);
  const double logit = key ? std::log(double{row[label]}) : given;
  multiply(row, static_cast<float>(1 / sum), n);
  row[label] -= 1.f;
  return std::log(sum) - logit;
}

// Ratio sums of one block for the Kullback-Leibler divergence; both rows become exponentials.
PYPRUNE_CLONES void divergence_block(float* __restrict student, float* __restrict teacher, float student_top,
                                     float teacher_top, float scale, float* __restrict lane, int64_t n) {
  float *s_lane = lane, *t_lane = lane + kLanes, *kl_lane = lane + 2 * kLanes;
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t here = std::min(kLanes, n - i);
    for (int64_t k = 0; k < here; ++k) {
      const float s = (student[i + k] - student_top) * scale, t = (teacher[i + k] - teacher_top) * scale;
      const float es = exp_(s), et = exp_(t);
      student[i + k] = es;
      teacher[i + k] = et;
      s_lane[k] += es;
      t_lane[k] += et;
      // A word that both models mask has logits of -inf, whose difference is NaN.
      kl_lane[k] += select(et == 0.f, 0.f, et * (t - s));
    }
  }
}

PYPRUNE_CLONES void difference(float* __restrict student, const float* __restrict teacher, float s_factor,
                               float t_factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) student[i] = student[i] * s_factor - teacher[i] * t_factor;
}

// tau^2 KL(teacher || student) of the distributions at temperature tau: gradient tau (p_student - p_teacher).
double divergence(float* student, float* teacher, int64_t n, float tau) {
  const float student_top = largest(student, n), teacher_top = largest(teacher, n);
  double s = 0, t = 0, kl = 0;
  for (int64_t i = 0; i < n; i += kBlock) {
    float lane[3 * kLanes] = {};
    divergence_block(student + i, teacher + i, student_top, teacher_top, 1.f / tau, lane, std::min(kBlock, n - i));
    s += total(lane);
    t += total(lane + kLanes);
    kl += total(lane + 2 * kLanes);
  }
  difference(student, teacher, static_cast<float>(tau / s), static_cast<float>(tau / t), n);
  return double{tau} * tau * (kl / t + std::log(s) - std::log(t));
}

// Sums for the probe: of e, of sqrt(e) eps, of sqrt(e) eps z and of e z, where z is the logit below the largest.
// sqrt(e) is taken as exp(z / 2): a call of sqrt may set errno, which keeps the loop from being vectorised.
PYPRUNE_CLONES void probe_block(float* __restrict row, float top, uint32_t low, uint32_t high, int32_t first,
                                float* __restrict lane, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t here = std::min(kLanes, n - i);
    for (int64_t k = 0; k < here; ++k) {
      const float z = row[i + k] - top, size = exp_(0.5f * z), e = size * size;
      const float finite = select(size == 0.f, 0.f, z);
      const uint32_t sign = noise(first + static_cast<int32_t>(i + k), low, high) & 0x80000000u;
      const float root = std::bit_cast<float>(std::bit_cast<uint32_t>(size) | sign);
      row[i + k] = root;
      lane[k] += e;
      lane[k + kLanes] += root;
      lane[k + 2 * kLanes] += root * finite;
      lane[k + 3 * kLanes] += e * finite;
    }
  }
}

PYPRUNE_CLONES void project_out(float* __restrict root, float factor, float along, int64_t n) {
  for (int64_t i = 0; i < n; ++i) root[i] = root[i] * factor - root[i] * root[i] * along;
}

// Gradient g = sqrt(p) eps - p <sqrt(p), eps>, whose covariance over the signs is diag p - p p^T; value <g, logits>.
double probe(float* row, int64_t n, uint64_t key) {
  const float top = largest(row, n);
  const uint32_t low = static_cast<uint32_t>(key), high = static_cast<uint32_t>(key >> 32);
  double sums[4] = {};
  for (int64_t i = 0; i < n; i += kBlock) {
    float lane[4 * kLanes] = {};
    probe_block(row + i, top, low, high, static_cast<int32_t>(i), lane, std::min(kBlock, n - i));
    for (int64_t s = 0; s < 4; ++s) sums[s] += total(lane + s * kLanes);
  }
  const double norm = std::sqrt(sums[0]), along = sums[1] / norm;
  project_out(row, static_cast<float>(1 / norm), static_cast<float>(along / sums[0]), n);
  return sums[2] / norm - along * sums[3] / sums[0];
}

PYPRUNE_CLONES void widen(float* __restrict wide, const bf16* __restrict row, int64_t n) {
  for (int64_t i = 0; i < n; ++i) wide[i] = load(row[i]);
}

PYPRUNE_CLONES void widen(float* __restrict wide, const f16* __restrict row, int64_t n) {
  for (int64_t i = 0; i < n; ++i) wide[i] = load(row[i]);
}

// Rows of a 16-bit weight that are widened at a time: 1.5 MB at a width of 768, which stays in L2 for its product.
constexpr int64_t kWidened = 512;

// f(first word, matrix of words x width) over the words [begin, end) of the weight.
template <typename T, typename F>
void each_part(const Tensor& weight, int64_t begin, int64_t end, const F& f) {
  const int64_t row = weight.stride(0), column = weight.stride(1), width = weight.size(1);
  const T* const data = static_cast<const T*>(weight.const_data_ptr());
  if constexpr (std::is_same_v<T, float>) {
    f(begin, Matrix{const_cast<float*>(data) + begin * row, end - begin, width, row, column});
  } else {
    std::vector<float> wide(std::min(kWidened, end - begin) * width);
    for (int64_t first = begin; first < end; first += kWidened) {
      const int64_t words = std::min(kWidened, end - first);
      for (int64_t w = 0; w < words; ++w) widen(wide.data() + w * width, data + (first + w) * row, width);
      f(first, Matrix{wide.data(), words, width, width, 1});
    }
  }
}

template <typename T>
void logits(const Matrix& x, const Tensor& weight, int64_t block, const Matrix& out) {
  const int64_t words = weight.size(0);
  for_each_serially((words + block - 1) / block, [&](int64_t i) {
    each_part<T>(weight, i * block, std::min(words, (i + 1) * block), [&](int64_t first, const Matrix& w) {
      serial_mm(x, {w.data, w.columns, w.rows, w.column, w.row}, {out.data + first, out.rows, w.rows, out.row, 1});
    });
  });
}

template <typename T>
void gradient(const Matrix& g, const Tensor& weight, int64_t block, float* partial) {
  const int64_t words = weight.size(0), width = weight.size(1), size = g.rows * width;
  for_each_serially((words + block - 1) / block, [&](int64_t i) {
    const int64_t begin = i * block;
    std::vector<float> later;
    each_part<T>(weight, begin, std::min(words, begin + block), [&](int64_t first, const Matrix& w) {
      if (first > begin) later.resize(size);
      float* const out = first > begin ? later.data() : partial + i * size;
      serial_mm({g.data + first, g.rows, w.rows, g.row, 1}, w, {out, g.rows, width, width, 1});
      if (first > begin) add(partial + i * size, out, size);
    });
  });
}

// f with a null pointer to the storage type of the weight
template <typename F>
void of_type(const Tensor& weight, const F& f) {
  switch (weight.scalar_type()) {
    case ScalarType::Float:
      return f(static_cast<float*>(nullptr));
    case ScalarType::BFloat16:
      return f(static_cast<bf16*>(nullptr));
    case ScalarType::Half:
      return f(static_cast<f16*>(nullptr));
    default:
      STD_TORCH_CHECK(false, "linear_cross_entropy: weight must be float32, bfloat16 or float16");
  }
}

Matrix rows_of(const Tensor& t) {
  return {static_cast<float*>(const_cast<void*>(t.const_data_ptr())), t.size(0), t.size(1), t.stride(0), 1};
}

// out = x weight^T, in independent blocks of `block` words. x, out: float32, rows contiguous; weight: 16-bit with
// contiguous rows, or float32. Checked, like all below, by pyprune/ops/linear_cross_entropy.py, the only caller.
void logits_(const Tensor& x, const Tensor& weight, int64_t block, Tensor out) {
  of_type(weight,
          [&](auto* p) { logits<std::remove_pointer_t<decltype(p)>>(rows_of(x), weight, block, rows_of(out)); });
}

// partial[i] = g weight over the i-th `block` words; float32 [blocks, rows, width], contiguous.
void logits_gradient_(const Tensor& g, const Tensor& weight, int64_t block, Tensor partial) {
  float* const out = partial.mutable_data_ptr<float>();
  of_type(weight, [&](auto* p) { gradient<std::remove_pointer_t<decltype(p)>>(rows_of(g), weight, block, out); });
}

// logits, teacher: float32 [rows, columns], rows contiguous; logits becomes the gradient, teacher is used up. bias,
// teacher_bias: float32 [columns]; keys: int64 [rows]; loss: float32 [rows]; picked: int64 [rows], holds the labels for
// kLabels.
void cross_entropy_rows_(Tensor logits, std::optional<Tensor> bias, std::optional<Tensor> teacher,
                         std::optional<Tensor> teacher_bias, std::optional<Tensor> keys, int64_t target,
                         double temperature, Tensor loss, Tensor picked) {
  const int64_t rows = logits.size(0), n = logits.size(1), stride = logits.stride(0);
  const int64_t teacher_stride = teacher ? teacher->stride(0) : 0;
  float* const l = logits.mutable_data_ptr<float>();
  float* const t = teacher ? teacher->mutable_data_ptr<float>() : nullptr;
  const float* const b = bias ? bias->const_data_ptr<float>() : nullptr;
  const float* const tb = teacher_bias ? teacher_bias->const_data_ptr<float>() : nullptr;
  const uint64_t* const key = keys ? reinterpret_cast<const uint64_t*>(keys->const_data_ptr<int64_t>()) : nullptr;
  float* const value = loss.mutable_data_ptr<float>();
  int64_t* const pick = picked.mutable_data_ptr<int64_t>();
  torch::stable::parallel_for(0, rows, 1, [&](int64_t lo, int64_t hi) {
    for (int64_t i = lo; i < hi; ++i) {
      float *row = l + i * stride, *other = t + i * teacher_stride;
      if (b) add(row, b, n);
      if (tb) add(other, tb, n);
      switch (target) {
        case kMaxLogit:
          value[i] = largest_at(row, n, pick[i]);
          break;
        case kKl:
          value[i] = static_cast<float>(divergence(row, other, n, static_cast<float>(temperature)));
          break;
        case kProbe:
          value[i] = static_cast<float>(probe(row, n, key[i]));
          break;
        default:
          value[i] = static_cast<float>(given_or_drawn(row, n, pick[i], target == kSampled ? key + i : nullptr));
      }
    }
  });
}

}  // namespace
}  // namespace pyprune

STABLE_TORCH_LIBRARY_FRAGMENT(pyprune_cpp, m) {
  m.def("logits_(Tensor x, Tensor weight, int block, Tensor(a!) out) -> ()");
  m.def("logits_gradient_(Tensor g, Tensor weight, int block, Tensor(a!) partial) -> ()");
  m.def(
      "cross_entropy_rows_(Tensor(a!) logits, Tensor? bias, Tensor(b!)? teacher, Tensor? teacher_bias, Tensor? keys, "
      "int target, float temperature, Tensor(c!) loss, Tensor(d!) picked) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pyprune_cpp, CPU, m) {
  m.impl("logits_", TORCH_BOX(&pyprune::logits_));
  m.impl("logits_gradient_", TORCH_BOX(&pyprune::logits_gradient_));
  m.impl("cross_entropy_rows_", TORCH_BOX(&pyprune::cross_entropy_rows_));
}
