// Per sample and channel, over the tokens t of the sample: mean, M2 = sum (x[t] - mean)^2 and sum |x[t]|.
//
// The op reads x once and writes next to nothing, so its floor is memory bandwidth. One task owns a segment of a sample
// and a block of columns. It sums x - shift in fp32 over stretches of n <= kStretch rows, whose M2 is
// sum (x - shift)^2 - n (mean - shift)^2, and merges those in double by Chan's formula, as it does with segments.
//
// The shift is the mean of k of the rows, or 0 where that is within half their range of 0. Then n (mean - shift)^2 is
// at most (n / k - 1) M2, or (n + 2 n / k) M2 because two rows differ by that range. So the subtraction magnifies
// rounding by no more than 4 n / 3 = 171 whatever the data, and by less than 3 where the rows are alike.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <type_traits>
#include <vector>

#include "cpu/avx512.h"
#include "cpu/segments.h"
#include "cpu/simd.h"

namespace pyprune {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kColumns = 2048;
// As in prod_reduce: narrower blocks only where there are fewer tasks than threads.
constexpr int64_t kNarrowestColumns = 512;
// A multiple of it makes a segment.
constexpr int64_t kStretch = 128;

// What is known of a block of columns after some rows of a stretch: the shift, the sums of x - shift, its square and
// |x|.
struct Sums {
  // Apart by a cache line more than a power of two: rows of many widths fall into one set of the cache already.
  static constexpr int64_t kSize = kColumns + 16;
  alignas(64) float shift[kSize], linear[kSize], square[kSize], absolute[kSize];
};

// The shift for rows that begin like x: their mean, of eight without the greatest and the least. The first token of a
// text is often a hundred times the others, and would move the shift away from all of them. None where the mean is
// small for the range of x: the running sum of x - shift would grow with the rows, and err more than that of x.
template <int64_t R>
PYPRUNE_INTO_CLONE float centre(const float (&x)[R]) {
  float sum = x[0], least = x[0], greatest = x[0];
#pragma GCC unroll 8
  for (int64_t r = 1; r < R; ++r) {
    sum += x[r];
    least = x[r] < least ? x[r] : least;
    greatest = x[r] > greatest ? x[r] : greatest;
  }
  const float mean = R == 8 ? (sum - (least + greatest)) * (1.f / 6) : sum * (1.f / R);
  return 2.f * std::fabs(mean) < greatest - least ? 0.f : mean;
}

template <int64_t R, bool FIRST, typename T>
PYPRUNE_INTO_CLONE void add_tile(Sums& sums, const T* const* rows, int64_t begin, int64_t end) {
  const T* row[R];
  std::copy_n(rows, R, row);
  for (int64_t c = begin; c < end; ++c) {
    float x[R];
#pragma GCC unroll 8
    for (int64_t r = 0; r < R; ++r) x[r] = load(row[r][c]);
    if constexpr (FIRST) sums.shift[c] = centre(x);
    float linear = 0.f, square = 0.f, absolute = 0.f;
#pragma GCC unroll 8
    for (int64_t r = 0; r < R; ++r) {
      const float d = x[r] - sums.shift[c];
      linear += d, square += d * d, absolute += std::fabs(x[r]);
    }
    sums.linear[c] = FIRST ? linear : sums.linear[c] + linear;
    sums.square[c] = FIRST ? square : sums.square[c] + square;
    sums.absolute[c] = FIRST ? absolute : sums.absolute[c] + absolute;
  }
}

// Adds as many of the rows as make a tile, and returns how many.
template <bool FIRST, typename T>
PYPRUNE_INTO_CLONE int64_t add_some(Sums& sums, const T* const* rows, int64_t tokens, int64_t begin, int64_t end) {
  if (tokens >= 8) return add_tile<8, FIRST>(sums, rows, begin, end), 8;
  if (tokens >= 4) return add_tile<4, FIRST>(sums, rows, begin, end), 4;
  if (tokens >= 2) return add_tile<2, FIRST>(sums, rows, begin, end), 2;
  return add_tile<1, FIRST>(sums, rows, begin, end), 1;
}

template <typename T>
PYPRUNE_INTO_CLONE void add_rows(Sums& sums, const T* const* rows, int64_t tokens, int64_t begin, int64_t end) {
  int64_t t = add_some<true>(sums, rows, tokens, begin, end);
  while (t < tokens) t += add_some<false>(sums, rows + t, tokens - t, begin, end);
}

PYPRUNE_CLONES void add_generic(Sums& sums, const float* const* rows, int64_t tokens, int64_t begin, int64_t end) {
  add_rows(sums, rows, tokens, begin, end);
}

PYPRUNE_CLONES void add_generic(Sums& sums, const bf16* const* rows, int64_t tokens, int64_t begin, int64_t end) {
  add_rows(sums, rows, tokens, begin, end);
}

PYPRUNE_CLONES void add_generic(Sums& sums, const f16* const* rows, int64_t tokens, int64_t begin, int64_t end) {
  add_rows(sums, rows, tokens, begin, end);
}

#ifdef PYPRUNE_X86
// Two registers of the values of 32 columns: neighbours, or of bf16 the even columns and the odd ones, which takes one
// instruction each where widening takes two.
struct Pair {
  __m512 at[2];
};

template <typename T>
PYPRUNE_AVX512 PYPRUNE_INTO_CLONE Pair load32(const T* p) {
  return {load16(p), load16(p + 16)};
}

PYPRUNE_AVX512 PYPRUNE_INTO_CLONE Pair load32(const bf16* p) {
  const __m512i bits = _mm512_loadu_si512(p);
  const __m512i even = _mm512_slli_epi32(bits, 16), odd = _mm512_and_si512(bits, _mm512_set1_epi32(0xffff0000));
  return {_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd)};
}

// Brings sums over rows of bf16 from the order of load32 into that of the columns.
PYPRUNE_AVX512 void interleave(float* sums, int64_t columns) {
  const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  for (int64_t c = 0; c < columns; c += 32) {
    const __m512 even = _mm512_load_ps(sums + c), odd = _mm512_load_ps(sums + c + 16);
    _mm512_store_ps(sums + c, _mm512_permutex2var_ps(even, low, odd));
    _mm512_store_ps(sums + c + 16, _mm512_permutex2var_ps(even, high, odd));
  }
}

template <int64_t R>
PYPRUNE_AVX512 PYPRUNE_INTO_CLONE __m512 centre(const Pair (&x)[R], int64_t half) {
  __m512 sum = x[0].at[half], least = sum, greatest = sum;
#pragma GCC unroll 8
  for (int64_t r = 1; r < R; ++r) {
    sum = _mm512_add_ps(sum, x[r].at[half]);
    least = _mm512_min_ps(least, x[r].at[half]);
    greatest = _mm512_max_ps(greatest, x[r].at[half]);
  }
  if (R == 8) sum = _mm512_sub_ps(sum, _mm512_add_ps(least, greatest));
  const __m512 mean = _mm512_mul_ps(sum, _mm512_set1_ps(1.f / (R == 8 ? 6 : R)));
  const __m512 twice = _mm512_add_ps(_mm512_abs_ps(mean), _mm512_abs_ps(mean));
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(twice, _mm512_sub_ps(greatest, least), _CMP_NLT_UQ), mean);
}

template <bool FIRST>
PYPRUNE_AVX512 PYPRUNE_INTO_CLONE void store(float* sums, __m512 term) {
  _mm512_store_ps(sums, FIRST ? term : _mm512_add_ps(_mm512_load_ps(sums), term));
}

template <int64_t R, bool FIRST, typename T>
PYPRUNE_AVX512 void add_tile_avx512(Sums& sums, const T* const* rows, int64_t columns) {
  const T* row[R];
  std::copy_n(rows, R, row);
  for (int64_t c = 0; c < columns; c += 32) {
    Pair x[R];
#pragma GCC unroll 8
    for (int64_t r = 0; r < R; ++r) x[r] = load32(row[r] + c);
#pragma GCC unroll 2
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t at = c + 16 * half;
      if constexpr (FIRST) _mm512_store_ps(sums.shift + at, centre(x, half));
      const __m512 shift = _mm512_load_ps(sums.shift + at);
      __m512 linear = _mm512_sub_ps(x[0].at[half], shift), square = _mm512_mul_ps(linear, linear);
      __m512 absolute = _mm512_abs_ps(x[0].at[half]);
#pragma GCC unroll 8
      for (int64_t r = 1; r < R; ++r) {
        const __m512 d = _mm512_sub_ps(x[r].at[half], shift);
        linear = _mm512_add_ps(linear, d);
        square = _mm512_fmadd_ps(d, d, square);
        absolute = _mm512_add_ps(absolute, _mm512_abs_ps(x[r].at[half]));
      }
      store<FIRST>(sums.linear + at, linear);
      store<FIRST>(sums.square + at, square);
      store<FIRST>(sums.absolute + at, absolute);
    }
  }
}

template <bool FIRST, typename T>
int64_t add_some_avx512(Sums& sums, const T* const* rows, int64_t tokens, int64_t columns) {
  if (tokens >= 8) return add_tile_avx512<8, FIRST>(sums, rows, columns), 8;
  if (tokens >= 4) return add_tile_avx512<4, FIRST>(sums, rows, columns), 4;
  if (tokens >= 2) return add_tile_avx512<2, FIRST>(sums, rows, columns), 2;
  return add_tile_avx512<1, FIRST>(sums, rows, columns), 1;
}

// The compiler's loops take 8 lanes of the 16-bit types and do not know the hardware's conversion of fp16.
template <typename T>
void add_avx512(Sums& sums, const T* const* rows, int64_t tokens, int64_t columns) {
  const int64_t whole = columns / 32 * 32;
  int64_t t = add_some_avx512<true>(sums, rows, tokens, whole);
  while (t < tokens) t += add_some_avx512<false>(sums, rows + t, tokens - t, whole);
  if (std::is_same_v<T, bf16>)
    for (float* s : {sums.shift, sums.linear, sums.square, sums.absolute}) interleave(s, whole);
  add_generic(sums, rows, tokens, whole, columns);
}
#endif

// `rows`: pointers to the first of `columns` columns, at least one.
template <typename T>
void add(Sums& sums, const T* const* rows, int64_t tokens, int64_t columns) {
#ifdef PYPRUNE_X86
  if (__builtin_cpu_supports("avx512f")) return add_avx512(sums, rows, tokens, columns);
#endif
  add_generic(sums, rows, tokens, 0, columns);
}

// Statistics of a block of columns. In double: two means of 1e3 that differ by 1e-3 would leave four digits in fp32.
struct Totals {
  alignas(64) double mean[kColumns], m2[kColumns], l1[kColumns];
};

// Adds the statistics of `tokens` tokens to those of `before` by Chan's formula.
struct Chan {
  double weight, between;

  Chan(int64_t before, int64_t tokens) : weight(double(tokens) / (before + tokens)), between(before * weight) {}

  PYPRUNE_INTO_CLONE void operator()(Totals& totals, int64_t c, double mean, double m2, double l1) const {
    const double delta = mean - totals.mean[c];
    totals.mean[c] += delta * weight;
    totals.m2[c] += m2 + delta * delta * between;
    totals.l1[c] += l1;
  }
};

PYPRUNE_CLONES void add_stretch(Totals& totals, int64_t before, const Sums& sums, int64_t tokens, int64_t columns) {
  const Chan add(before, tokens);
  const double inverse = 1. / tokens;
  for (int64_t c = 0; c < columns; ++c) {
    const double linear = sums.linear[c], offset = linear * inverse, m2 = sums.square[c] - linear * offset;
    add(totals, c, sums.shift[c] + offset, m2 < 0. ? 0. : m2, sums.absolute[c]);
  }
}

// A segment's row of the workspace: mean, M2 and sum |x|, each `stride` apart.
PYPRUNE_CLONES void add_segment(Totals& totals, int64_t before, const double* segment, int64_t stride, int64_t tokens,
                                int64_t columns) {
  const Chan add(before, tokens);
  const double *mean = segment, *m2 = mean + stride, *l1 = m2 + stride;
  for (int64_t c = 0; c < columns; ++c) add(totals, c, mean[c], m2[c], l1[c]);
}

// Some rows of x, at most a segment.
template <typename T>
struct Rows {
  const T* at[kSegment];
  int64_t tokens = 0;
};

template <typename T>
void stats_of_rows(Totals& totals, const Rows<T>& rows, int64_t columns) {
  Sums sums;
  totals = {};
  for (int64_t t = 0; t < rows.tokens; t += kStretch) {
    const int64_t tokens = std::min(kStretch, rows.tokens - t);
    add(sums, rows.at + t, tokens, columns);
    add_stretch(totals, t, sums, tokens, columns);
  }
}

// Result rows at one sample and column.
struct Result {
  float *mean, *m2, *l1;

  void write(const Totals& totals, int64_t at, int64_t columns) const {
    std::copy_n(totals.mean, columns, mean + at);
    std::copy_n(totals.m2, columns, m2 + at);
    std::copy_n(totals.l1, columns, l1 + at);
  }
};

template <typename T>
void channel_stats_of(const Tensor& x, const std::vector<int64_t>& offsets, const bool* mask, const Result& result) {
  const bool ragged = !offsets.empty();
  const int64_t columns = x.size(-1), token = x.stride(-2), sample = ragged ? 0 : x.stride(0);
  const int64_t length = ragged ? 0 : x.size(1);
  const T* const xs = static_cast<const T*>(x.const_data_ptr());
  const Segments cut = cut_into_segments(ragged ? 0 : x.size(0), length, offsets);
  // Not cleared: that would take as long as the reading of a twentieth of x.
  const auto workspace = std::make_unique_for_overwrite<double[]>(cut.slots * 3 * columns);
  std::vector<int64_t> real(cut.slots);  // tokens of the segments in the workspace

  const int64_t threads = torch::stable::get_num_threads(), tasks = cut.all.size();
  const int64_t pieces = std::max((columns + kColumns - 1) / kColumns, (threads + tasks - 1) / tasks);
  const int64_t even = ((columns + pieces - 1) / pieces + 63) / 64 * 64;
  const int64_t block = std::clamp(even, kNarrowestColumns, kColumns), blocks = (columns + block - 1) / block;
  torch::stable::parallel_for(0, tasks * blocks, 1, [&](int64_t lo, int64_t hi) {
    Totals totals;
    for (int64_t task = lo; task < hi; ++task) {
      const Segment& s = cut.all[task / blocks];
      const int64_t begin = task % blocks * block, width = std::min(columns, begin + block) - begin;
      Rows<T> rows;
      for (int64_t t = s.first; t < s.first + s.tokens; ++t)
        if (!mask || mask[s.sample * length + t]) rows.at[rows.tokens++] = xs + s.sample * sample + t * token + begin;
      stats_of_rows(totals, rows, width);
      if (s.slot < 0) {
        result.write(totals, s.sample * columns + begin, width);
      } else {
        double* to = workspace.get() + s.slot * 3 * columns + begin;
        for (const double* plane : {totals.mean, totals.m2, totals.l1}) std::copy_n(plane, width, to), to += columns;
        if (begin == 0) real[s.slot] = rows.tokens;
      }
    }
  });
  if (cut.slots == 0) return;

  std::vector<int64_t> first(cut.samples() + 1);  // slot of every sample
  for (int64_t b = 0; b < cut.samples(); ++b) first[b + 1] = first[b] + (cut.counts[b] > 1 ? cut.counts[b] : 0);
  torch::stable::parallel_for(0, cut.samples() * blocks, 1, [&](int64_t lo, int64_t hi) {
    for (int64_t task = lo; task < hi; ++task) {
      const int64_t b = task / blocks, begin = task % blocks * block;
      const int64_t width = std::min(columns, begin + block) - begin;
      if (first[b] == first[b + 1]) continue;
      Totals totals{};
      int64_t tokens = 0;
      for (int64_t slot = first[b]; slot < first[b + 1]; tokens += real[slot++]) {
        const double* segment = workspace.get() + slot * 3 * columns + begin;
        if (real[slot]) add_segment(totals, tokens, segment, columns, real[slot], width);
      }
      result.write(totals, b * columns + begin, width);
    }
  });
}

// Shapes, dtypes and offsets are checked by pyprune/ops/channel_stats.py, the only caller. It sends nothing empty.
void channel_stats(const Tensor& x, std::optional<Tensor> cu_seqlens, std::optional<Tensor> token_mask, Tensor mean,
                   Tensor m2, Tensor l1) {
  const Result result{mean.mutable_data_ptr<float>(), m2.mutable_data_ptr<float>(), l1.mutable_data_ptr<float>()};
  const std::vector<int64_t> offsets = read_offsets(cu_seqlens);
  const bool* mask = token_mask ? static_cast<const bool*>(token_mask->const_data_ptr()) : nullptr;
  switch (x.scalar_type()) {
    case ScalarType::Float:
      channel_stats_of<float>(x, offsets, mask, result);
      break;
    case ScalarType::BFloat16:
      channel_stats_of<bf16>(x, offsets, mask, result);
      break;
    case ScalarType::Half:
      channel_stats_of<f16>(x, offsets, mask, result);
      break;
    default:
      STD_TORCH_CHECK(false, "channel_stats: x must be float32, bfloat16 or float16");
  }
}

}  // namespace
}  // namespace pyprune

STABLE_TORCH_LIBRARY_FRAGMENT(pyprune_cpp, m) {
  m.def(
      "channel_stats(Tensor x, Tensor? cu_seqlens, Tensor? token_mask, Tensor(a!) mean, Tensor(b!) m2, Tensor(c!) l1) "
      "-> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pyprune_cpp, CPU, m) { m.impl("channel_stats", TORCH_BOX(&pyprune::channel_stats)); }
