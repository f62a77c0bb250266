// out[b, j] = sum over the tokens t of sample b and the columns c of group j of x[t, c] * y[t, c], in fp32.
//
// The op reads two tensors once and writes next to nothing, so its floor is memory bandwidth. One task owns a segment
// of a sample and a block of columns: it walks the rows in order with fp32 accumulators that stay in L1.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "cpu/segments.h"
#include "cpu/simd.h"

#ifdef PYPRUNE_X86
#include <immintrin.h>
#endif

namespace pyprune {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Of 4, 8, 16 rows x 1024, 2048, 4096 columns, [32,128,3072] on 2 cores: 4 x 4096 reads 47-51 GB/s, the others 26-46.
constexpr int64_t kColumns = 4096;
constexpr int64_t kRows = 4;
// Narrower blocks lose up to 25 % of a core's bandwidth: only where there are fewer tasks than threads.
constexpr int64_t kNarrowestColumns = 512;

template <int64_t R, typename T>
PYPRUNE_INTO_CLONE void add_rows(float* __restrict acc, const T* __restrict x, const T* __restrict y, int64_t x_token,
                                 int64_t y_token, int64_t columns) {
  for (int64_t c = 0; c < columns; ++c) {
    float sum = 0.f;
#pragma GCC unroll 8
    for (int64_t r = 0; r < R; ++r) sum += load(x[r * x_token + c]) * load(y[r * y_token + c]);
    acc[c] += sum;
  }
}

template <typename T>
PYPRUNE_INTO_CLONE void accumulate_rows(float* acc, const T* x, const T* y, int64_t x_token, int64_t y_token,
                                        int64_t tokens, int64_t columns) {
  std::fill(acc, acc + columns, 0.f);
  int64_t t = 0;
  for (; t + kRows <= tokens; t += kRows)
    add_rows<kRows>(acc, x + t * x_token, y + t * y_token, x_token, y_token, columns);
  for (; t < tokens; ++t) add_rows<1>(acc, x + t * x_token, y + t * y_token, x_token, y_token, columns);
}

PYPRUNE_CLONES void accumulate(float* acc, const float* x, const float* y, int64_t x_token, int64_t y_token,
                               int64_t tokens, int64_t columns) {
  accumulate_rows(acc, x, y, x_token, y_token, tokens, columns);
}

PYPRUNE_CLONES void accumulate(float* acc, const bf16* x, const bf16* y, int64_t x_token, int64_t y_token,
                               int64_t tokens, int64_t columns) {
  accumulate_rows(acc, x, y, x_token, y_token, tokens, columns);
}

PYPRUNE_CLONES void accumulate_generic(float* acc, const f16* x, const f16* y, int64_t x_token, int64_t y_token,
                                       int64_t tokens, int64_t columns) {
  accumulate_rows(acc, x, y, x_token, y_token, tokens, columns);
}

#ifdef PYPRUNE_X86
__attribute__((target("avx512f"), always_inline)) inline __m512 load16(const f16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// The hardware's conversion, which the compiler does not find by itself: the generic loop reads at half the speed.
__attribute__((target("avx512f"))) void accumulate_avx512(float* acc, const f16* x, const f16* y, int64_t x_token,
                                                          int64_t y_token, int64_t tokens, int64_t columns) {
  const int64_t whole = columns / 16 * 16;
  std::fill(acc, acc + whole, 0.f);
  for (int64_t t = 0; t < tokens; t += kRows) {
    const int64_t rows = std::min(kRows, tokens - t);
    for (int64_t c = 0; c < whole; c += 16) {
      __m512 sum = _mm512_setzero_ps();
      for (int64_t r = 0; r < rows; ++r)
        sum = _mm512_fmadd_ps(load16(x + (t + r) * x_token + c), load16(y + (t + r) * y_token + c), sum);
      _mm512_storeu_ps(acc + c, _mm512_add_ps(_mm512_loadu_ps(acc + c), sum));
    }
  }
  accumulate_generic(acc + whole, x + whole, y + whole, x_token, y_token, tokens, columns - whole);
}
#endif

void accumulate(float* acc, const f16* x, const f16* y, int64_t x_token, int64_t y_token, int64_t tokens,
                int64_t columns) {
#ifdef PYPRUNE_X86
  if (__builtin_cpu_supports("avx512f")) return accumulate_avx512(acc, x, y, x_token, y_token, tokens, columns);
#endif
  accumulate_generic(acc, x, y, x_token, y_token, tokens, columns);
}

// Which outputs the columns feed: `group` neighbours share one, or (mod_group > 0) all that are congruent mod
// mod_group.
struct Fold {
  int64_t group, mod_group;

  bool identity() const { return group == 1 && mod_group == 0; }
  int64_t outputs(int64_t columns) const { return mod_group > 0 ? mod_group : columns / group; }

  // Adds the columns [begin, end) of a row to its outputs; in double, because a wide group has thousands of terms.
  void operator()(const float* acc, int64_t begin, int64_t end, double* sums) const {
    const int64_t period = mod_group > 0 ? mod_group : group;
    for (int64_t c = begin; c < end;) {
      const int64_t run = std::min(end - c, period - c % period);
      if (mod_group > 0) {
        for (int64_t k = 0; k < run; ++k) sums[c % period + k] += acc[c - begin + k];
      } else {
        sums[c / period] += sum(acc + c - begin, run);
      }
      c += run;
    }
  }

 private:
  // Four lanes: one running sum would wait four cycles for each addition.
  static double sum(const float* v, int64_t n) {
    double lane[4] = {};
    int64_t i = 0;
    for (; i + 4 <= n; i += 4)
      for (int64_t k = 0; k < 4; ++k) lane[k] += v[i + k];
    for (int64_t k = 0; i < n; ++i, ++k) lane[k] += v[i];
    return (lane[0] + lane[2]) + (lane[1] + lane[3]);
  }
};

// The columns [begin, end) of `tokens` rows, added to the outputs of a whole row at `dest`.
template <typename T>
void reduce_block(float* dest, const T* x, const T* y, int64_t x_token, int64_t y_token, int64_t tokens, int64_t begin,
                  int64_t end, const Fold& fold) {
  if (fold.identity()) return accumulate(dest + begin, x + begin, y + begin, x_token, y_token, tokens, end - begin);
  alignas(64) float acc[kColumns];
  const int64_t first = fold.mod_group > 0 ? 0 : begin / fold.group;
  std::vector<double> sums(fold.outputs(end - begin));
  for (int64_t c = begin; c < end; c += kColumns) {
    const int64_t stop = std::min(end, c + kColumns);
    accumulate(acc, x + c, y + c, x_token, y_token, tokens, stop - c);
    fold(acc, c, stop, sums.data() - first);
  }
  std::copy(sums.begin(), sums.end(), dest + first);
}

template <typename T>
void reduce(const Tensor& x, const Tensor& y, const std::vector<int64_t>& offsets, const Fold& fold, Tensor& out) {
  const bool ragged = !offsets.empty();
  const int64_t outputs = out.size(1), columns = x.size(-1);
  const int64_t x_token = x.stride(ragged ? 0 : 1), y_token = y.stride(ragged ? 0 : 1);
  const int64_t x_sample = ragged ? 0 : x.stride(0), y_sample = ragged ? 0 : y.stride(0);
  const T *xs = static_cast<const T*>(x.const_data_ptr()), *ys = static_cast<const T*>(y.const_data_ptr());
  const Segments cut = cut_into_segments(out.size(0), ragged ? 0 : x.size(1), offsets);
  float* const result = out.mutable_data_ptr<float>();
  std::vector<float> workspace(cut.slots * outputs);

  // A block holds whole groups. Columns congruent mod mod_group are spread over the row: one task folds all of it.
  const int64_t threads = torch::stable::get_num_threads(), tasks = cut.all.size();
  const int64_t share = (columns * tasks / threads + 63) / 64 * 64;
  const int64_t target = tasks < threads ? std::clamp(share, kNarrowestColumns, kColumns) : kColumns;
  const int64_t block = fold.mod_group > 0 ? columns : std::max(fold.group, target / fold.group * fold.group);
  const int64_t blocks = (columns + block - 1) / block;
  torch::stable::parallel_for(0, tasks * blocks, 1, [&](int64_t lo, int64_t hi) {
    for (int64_t task = lo; task < hi; ++task) {
      const Segment& s = cut.all[task / blocks];
      const int64_t begin = task % blocks * block;
      float* dest = s.slot < 0 ? result + s.sample * outputs : workspace.data() + s.slot * outputs;
      reduce_block(dest, xs + s.sample * x_sample + s.first * x_token, ys + s.sample * y_sample + s.first * y_token,
                   x_token, y_token, s.tokens, begin, std::min(columns, begin + block), fold);
    }
  });

  merge_segments(cut, [&](int64_t sample, int64_t slot, bool first) {
    float* sum = result + sample * outputs;
    const float* partial = workspace.data() + slot * outputs;
    if (first) return static_cast<void>(std::copy(partial, partial + outputs, sum));
    for (int64_t j = 0; j < outputs; ++j) sum[j] += partial[j];
  });
}

// Shapes, dtypes and offsets are checked by pyprune/ops/prod_reduce.py, the only caller.
void prod_reduce(const Tensor& x, const Tensor& y, std::optional<Tensor> cu_seqlens, int64_t group, int64_t mod_group,
                 Tensor out) {
  const Fold fold{group, mod_group};
  const std::vector<int64_t> offsets = read_offsets(cu_seqlens);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      reduce<float>(x, y, offsets, fold, out);
      break;
    case ScalarType::BFloat16:
      reduce<bf16>(x, y, offsets, fold, out);
      break;
    case ScalarType::Half:
      reduce<f16>(x, y, offsets, fold, out);
      break;
    default:
      STD_TORCH_CHECK(false, "prod_reduce: x must be float32, bfloat16 or float16");
  }
}

}  // namespace
}  // namespace pyprune

STABLE_TORCH_LIBRARY_FRAGMENT(pyprune_cpp, m) {
  m.def("prod_reduce(Tensor x, Tensor y, Tensor? cu_seqlens, int group, int mod_group, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pyprune_cpp, CPU, m) { m.impl("prod_reduce", TORCH_BOX(&pyprune::prod_reduce)); }
