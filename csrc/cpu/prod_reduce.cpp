// out[p, b, j] = sum over the tokens t of sample b and the columns c of group j of x[t, c] * y[p, t, c], in fp32.
//
// The op reads its tensors once and writes next to nothing, so its floor is memory bandwidth. One task owns a segment
// of a sample and a block of columns: it walks the rows in order with fp32 accumulators that stay in cache. Probes p
// share every row of x while it is there.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <vector>

#include "cpu/avx512.h"
#include "cpu/segments.h"
#include "cpu/simd.h"

namespace pyprune {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Of 4, 8, 16 rows x 1024, 2048, 4096 columns, [32,128,3072] on 2 cores: 4 x 4096 reads 47-51 GB/s, the others 26-46.
constexpr int64_t kColumns = 4096;
constexpr int64_t kRows = 4;
// Narrower blocks lose up to 25 % of a core's bandwidth: only where there are fewer tasks than threads.
constexpr int64_t kNarrowestColumns = 512;
// Probes whose rows are read side by side while the values of x stay in registers. For 8 probes on [32,128,3072] fp32,
// 4 take 19.8 ms (plain reading of all bytes: 18.7), 2 take 20.9; all rows of a tile for one probe after the
// other 23.4.
constexpr int64_t kProbes = 4;
// Probes per pass over x and their accumulators, 128 KB of L2: more than 8 probes take fewer columns at a time.
constexpr int64_t kProbesTogether = 32;
constexpr int64_t kAccumulators = 8 * kColumns;

// Rows of x, and of y for every probe.
template <typename T>
struct Rows {
  const T *x, *y;
  int64_t x_token, y_token, y_probe, probes, tokens;

  Rows at(int64_t token, int64_t probe, int64_t column) const {
    Rows moved = *this;
    moved.x += token * x_token + column;
    moved.y += probe * y_probe + token * y_token + column;
    return moved;
  }
};

// A row of accumulators for each probe.
struct Sums {
  float* at;
  int64_t probe;
};

template <int64_t R, int64_t P, typename T>
PYPRUNE_INTO_CLONE void add_rows(Sums sums, const Rows<T>& rows, int64_t columns) {
  float* __restrict acc = sums.at;
  const T *x = rows.x, *y = rows.y;
  const int64_t x_token = rows.x_token, y_token = rows.y_token, y_probe = rows.y_probe;
#pragma GCC ivdep
  for (int64_t c = 0; c < columns; ++c) {
    float left[R];
#pragma GCC unroll 8
    for (int64_t r = 0; r < R; ++r) left[r] = load(x[r * x_token + c]);
#pragma GCC unroll 8
    for (int64_t p = 0; p < P; ++p) {
      float sum = 0.f;
#pragma GCC unroll 8
      for (int64_t r = 0; r < R; ++r) sum += left[r] * load(y[p * y_probe + r * y_token + c]);
      acc[p * sums.probe + c] += sum;
    }
  }
}

template <int64_t R, typename T>
PYPRUNE_INTO_CLONE void add_rows_of_probes(Sums sums, const Rows<T>& rows, int64_t t, int64_t columns) {
  int64_t p = 0;
  for (; p + kProbes <= rows.probes; p += kProbes)
    add_rows<R, kProbes>({sums.at + p * sums.probe, sums.probe}, rows.at(t, p, 0), columns);
  for (; p < rows.probes; ++p) add_rows<R, 1>({sums.at + p * sums.probe, sums.probe}, rows.at(t, p, 0), columns);
}

PYPRUNE_INTO_CLONE void clear(Sums sums, int64_t probes, int64_t columns) {
  for (int64_t p = 0; p < probes; ++p) std::fill_n(sums.at + p * sums.probe, columns, 0.f);
}

template <typename T>
PYPRUNE_INTO_CLONE void accumulate_rows(Sums sums, const Rows<T>& rows, int64_t columns) {
  clear(sums, rows.probes, columns);
  int64_t t = 0;
  for (; t + kRows <= rows.tokens; t += kRows) add_rows_of_probes<kRows>(sums, rows, t, columns);
  for (; t < rows.tokens; ++t) add_rows_of_probes<1>(sums, rows, t, columns);
}

PYPRUNE_CLONES void accumulate(Sums sums, const Rows<float>& rows, int64_t columns) {
  accumulate_rows(sums, rows, columns);
}

PYPRUNE_CLONES void accumulate_generic(Sums sums, const Rows<bf16>& rows, int64_t columns) {
  accumulate_rows(sums, rows, columns);
}

PYPRUNE_CLONES void accumulate_generic(Sums sums, const Rows<f16>& rows, int64_t columns) {
  accumulate_rows(sums, rows, columns);
}

#ifdef PYPRUNE_X86
template <int64_t R, int64_t P, typename T>
PYPRUNE_AVX512 void add_rows_avx512(Sums sums, const Rows<T>& rows, int64_t columns) {
  const T *x = rows.x, *y = rows.y;
  const int64_t x_token = rows.x_token, y_token = rows.y_token, y_probe = rows.y_probe;
  for (int64_t c = 0; c < columns; c += 16) {
    __m512 left[R];
#pragma GCC unroll 4
    for (int64_t r = 0; r < R; ++r) left[r] = load16(x + r * x_token + c);
#pragma GCC unroll 4
    for (int64_t p = 0; p < P; ++p) {
      __m512 sum = _mm512_setzero_ps();
#pragma GCC unroll 4
      for (int64_t r = 0; r < R; ++r) sum = _mm512_fmadd_ps(left[r], load16(y + p * y_probe + r * y_token + c), sum);
      float* acc = sums.at + p * sums.probe + c;
      _mm512_storeu_ps(acc, _mm512_add_ps(_mm512_loadu_ps(acc), sum));
    }
  }
}

template <int64_t R, typename T>
void add_rows_of_probes_avx512(Sums sums, const Rows<T>& rows, int64_t t, int64_t columns) {
  int64_t p = 0;
  for (; p + kProbes <= rows.probes; p += kProbes)
    add_rows_avx512<R, kProbes>({sums.at + p * sums.probe, sums.probe}, rows.at(t, p, 0), columns);
  for (; p < rows.probes; ++p) add_rows_avx512<R, 1>({sums.at + p * sums.probe, sums.probe}, rows.at(t, p, 0), columns);
}

// 16 lanes at a time and the hardware's conversion of fp16: the compiler's loops take 8 lanes for these types, and read
// bf16 at 37 GB/s where this one reads at 45, and fp16 at half of that.
template <typename T>
void accumulate_avx512(Sums sums, const Rows<T>& rows, int64_t columns) {
  const int64_t whole = columns / 16 * 16;
  clear(sums, rows.probes, whole);
  int64_t t = 0;
  for (; t + kRows <= rows.tokens; t += kRows) add_rows_of_probes_avx512<kRows>(sums, rows, t, whole);
  for (; t < rows.tokens; ++t) add_rows_of_probes_avx512<1>(sums, rows, t, whole);
  accumulate_generic({sums.at + whole, sums.probe}, rows.at(0, 0, whole), columns - whole);
}
#endif

template <typename T>
void accumulate(Sums sums, const Rows<T>& rows, int64_t columns) {
#ifdef PYPRUNE_X86
  if (__builtin_cpu_supports("avx512f")) return accumulate_avx512(sums, rows, columns);
#endif
  accumulate_generic(sums, rows, columns);
}

// Which outputs the columns feed: `group` neighbours share one, or (mod_group > 0) all that are congruent mod
// mod_group.
struct Fold {
  int64_t group, mod_group;

  bool identity() const { return group == 1 && mod_group == 0; }
  int64_t outputs(int64_t columns) const { return mod_group > 0 ? mod_group : columns / group; }
  // Sums that an output is made of. Four of a group: one running sum would wait four cycles for each addition.
  int64_t lanes() const { return mod_group > 0 ? 1 : 4; }

  // Columns of whole groups and whole vectors at a time, at most `width`; 0 if groups are too wide for that.
  int64_t whole_groups(int64_t columns, int64_t width) const {
    const int64_t least = std::lcm(group, int64_t{16});
    return columns <= width ? columns : width / least * least;
  }

  // Adds the columns [begin, end) of a row to the lanes of their outputs; in double, because a wide group has thousands
  // of terms. The lane is that of the column's place in its group: the bits do not depend on where a row is cut.
  void operator()(const float* acc, int64_t begin, int64_t end, double* sums) const {
    const int64_t period = mod_group > 0 ? mod_group : group;
    for (int64_t c = begin; c < end;) {
      const int64_t run = std::min(end - c, period - c % period);
      if (mod_group > 0) {
        for (int64_t k = 0; k < run; ++k) sums[c % period + k] += acc[c - begin + k];
      } else {
        add(sums + 4 * (c / period), acc + c - begin, c % period, run);
      }
      c += run;
    }
  }

  // out[j] = the sum of group j, for whole groups: to the bits of the lanes above, which need not go to memory then.
  void whole(const float* acc, int64_t columns, float* out) const {
    for (int64_t j = 0; j < columns / group; ++j) {
      double lane[4] = {};
      add(lane, acc + j * group, 0, group);
      out[j] = total(lane, 0);
    }
  }

  float total(const double* sums, int64_t output) const {
    const double* lane = sums + lanes() * output;
    return static_cast<float>(mod_group > 0 ? *lane : (lane[0] + lane[2]) + (lane[1] + lane[3]));
  }

 private:
  // v: `n` columns from the place `first` of their group on.
  static void add(double* sums, const float* v, int64_t first, int64_t n) {
    int64_t i = 0;
    for (; i < n && (first + i) % 4 != 0; ++i) sums[(first + i) % 4] += v[i];
    double lane[4];
    std::copy_n(sums, 4, lane);
    for (; i + 4 <= n; i += 4)
      for (int64_t k = 0; k < 4; ++k) lane[k] += v[i + k];
    for (int64_t k = 0; i < n; ++i, ++k) lane[k] += v[i];
    std::copy_n(lane, 4, sums);
  }
};

// The columns [begin, end) of all rows, added to the outputs of a whole row for each probe at `dest`.
template <typename T>
void reduce_block(Sums dest, const Rows<T>& rows, int64_t begin, int64_t end, const Fold& fold) {
  const int64_t width = std::min(kColumns, kAccumulators / rows.probes / 16 * 16);
  if (fold.identity()) {
    for (int64_t c = begin; c < end; c += width)
      accumulate({dest.at + c, dest.probe}, rows.at(0, 0, c), std::min(end, c + width) - c);
    return;
  }
  alignas(64) float acc[kAccumulators];
  if (const int64_t whole = fold.mod_group > 0 ? 0 : fold.whole_groups(end - begin, width); whole > 0) {
    for (int64_t c = begin; c < end; c += whole) {
      const int64_t columns = std::min(end - c, whole);
      accumulate({acc, width}, rows.at(0, 0, c), columns);
      for (int64_t p = 0; p < rows.probes; ++p)
        fold.whole(acc + p * width, columns, dest.at + p * dest.probe + c / fold.group);
    }
    return;
  }
  const int64_t first = fold.mod_group > 0 ? 0 : begin / fold.group, outputs = fold.outputs(end - begin);
  const int64_t sums_row = outputs * fold.lanes();
  std::vector<double> sums(rows.probes * sums_row);
  for (int64_t c = begin; c < end; c += width) {
    const int64_t stop = std::min(end, c + width);
    accumulate({acc, width}, rows.at(0, 0, c), stop - c);
    for (int64_t p = 0; p < rows.probes; ++p)
      fold(acc + p * width, c, stop, sums.data() + p * sums_row - first * fold.lanes());
  }
  for (int64_t p = 0; p < rows.probes; ++p)
    for (int64_t j = 0; j < outputs; ++j)
      dest.at[p * dest.probe + first + j] = fold.total(sums.data() + p * sums_row, j);
}

template <typename T>
void reduce(const Tensor& x, const Tensor& y, const std::vector<int64_t>& offsets, const Fold& fold, Tensor& out) {
  const bool ragged = !offsets.empty();
  const int64_t samples = out.size(-2), outputs = out.size(-1), columns = x.size(-1);
  const int64_t x_sample = ragged ? 0 : x.stride(0), y_sample = ragged ? 0 : y.stride(-3);
  const bool probed = y.dim() > x.dim();
  const Rows<T> rows{static_cast<const T*>(x.const_data_ptr()),
                     static_cast<const T*>(y.const_data_ptr()),
                     x.stride(-2),
                     y.stride(-2),
                     probed ? y.stride(0) : 0,
                     probed ? y.size(0) : 1,
                     0};
  const Segments cut = cut_into_segments(samples, ragged ? 0 : x.size(1), offsets);
  const Sums result{out.mutable_data_ptr<float>(), samples * outputs};
  std::vector<float> workspace(rows.probes * cut.slots * outputs);
  const Sums partial{workspace.data(), cut.slots * outputs};

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
      const Sums dest = s.slot < 0 ? Sums{result.at + s.sample * outputs, result.probe}
                                   : Sums{partial.at + s.slot * outputs, partial.probe};
      for (int64_t p = 0; p < rows.probes; p += kProbesTogether) {
        Rows<T> here = rows.at(s.first, p, 0);
        here.x += s.sample * x_sample, here.y += s.sample * y_sample;
        here.tokens = s.tokens, here.probes = std::min(kProbesTogether, rows.probes - p);
        reduce_block({dest.at + p * dest.probe, dest.probe}, here, begin, std::min(columns, begin + block), fold);
      }
    }
  });

  for (int64_t p = 0; p < rows.probes; ++p) {
    merge_segments(cut, [&](int64_t sample, int64_t slot, bool first) {
      float* sum = result.at + p * result.probe + sample * outputs;
      const float* part = partial.at + p * partial.probe + slot * outputs;
      if (first) return static_cast<void>(std::copy(part, part + outputs, sum));
      for (int64_t j = 0; j < outputs; ++j) sum[j] += part[j];
    });
  }
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
