// An activation, gated or not, with a mask on its output or its input, and the moments of what it stores over tokens.
//
// The moments are read from the rows just written, which are in the cache: they cost no bytes.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "cpu/segments.h"
#include "cpu/simd.h"
#include "cpu/token_rows.h"
#include "cpu/vmath.h"

namespace pyprune {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Rows between two updates of the moments: a block of them stays in L2 between the activation and its moments.
constexpr int64_t kRows = 8;

template <Act A, bool GATED, typename T>
PYPRUNE_STORE_CLONES void activate_rows(Rows<const T> pre, Rows<const T> up, Rows<T> out, const float* mask_in,
                                        const float* mask_out, int64_t tokens, int64_t columns) {
  for (int64_t t = 0; t < tokens; ++t) {
    const T *x = pre.row(t), *u = GATED ? up.row(t) : nullptr;
    T* o = out.row(t);
#pragma GCC ivdep
    for (int64_t c = 0; c < columns; ++c) {
      const float a = activate<A>(load(x[c]) * mask_in[c]).value;
      store(o + c, (GATED ? a * load(u[c]) : a) * mask_out[c]);
    }
  }
}

// Mean, squared deviations and sum of absolute values of every column of some rows.
struct Moments {
  float *mean, *m2, *l1;

  Moments operator+(int64_t columns) const { return {mean + columns, m2 + columns, l1 + columns}; }
};

// Joins `rows` rows to the moments of `count` earlier ones (Chan et al. 1979): nothing cancels where the mean is large.
template <typename T>
PYPRUNE_STORE_CLONES void add_moments(Moments to, Rows<T> values, int64_t rows, int64_t count, int64_t columns) {
  float *mean = to.mean, *m2 = to.m2, *l1 = to.l1;
  const float each = 1.f / static_cast<float>(rows),
              weight = static_cast<float>(rows) / static_cast<float>(count + rows);
  const float both = weight * static_cast<float>(count);
  float sums[kBlockColumns], sizes[kBlockColumns], deviations[kBlockColumns];
  for (int64_t c = 0; c < columns; ++c) sums[c] = sizes[c] = deviations[c] = 0.f;
  for (int64_t r = 0; r < rows; ++r) {
    const T* v = values.row(r);
#pragma GCC ivdep
    for (int64_t c = 0; c < columns; ++c) {
      sums[c] += load(v[c]);
      sizes[c] += __builtin_fabsf(load(v[c]));
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    const T* v = values.row(r);
#pragma GCC ivdep
    for (int64_t c = 0; c < columns; ++c) {
      const float d = load(v[c]) - sums[c] * each;
      deviations[c] += d * d;
    }
  }
#pragma GCC ivdep
  for (int64_t c = 0; c < columns; ++c) {
    const float step = sums[c] * each - mean[c];
    mean[c] += step * weight;
    m2[c] += deviations[c] + step * step * both;
    l1[c] += sizes[c];
  }
}

// Joins the moments of `rows` rows to those of `count` earlier ones.
PYPRUNE_CLONES void merge_moments(Moments to, Moments from, int64_t rows, int64_t count, int64_t columns) {
  const float weight = static_cast<float>(rows) / static_cast<float>(count + rows);
  const float both = weight * static_cast<float>(count);
#pragma GCC ivdep
  for (int64_t c = 0; c < columns; ++c) {
    const float step = from.mean[c] - to.mean[c];
    to.mean[c] += step * weight;
    to.m2[c] += from.m2[c] + step * step * both;
    to.l1[c] += from.l1[c];
  }
}

void clear(const Moments& m, int64_t columns) {
  for (float* p : {m.mean, m.m2, m.l1}) std::fill_n(p, columns, 0.f);
}

struct Arguments {
  const Tensor& pre;
  const Tensor* up;
  const Tensor* mask;
  bool mask_before;
  const std::vector<int64_t>& offsets;
  bool stats;
  Tensor &out, &mean, &m2, &l1;
};

template <Act A, bool GATED, typename T>
void run(const Arguments& a) {
  const bool ragged = !a.offsets.empty();
  const int64_t columns = a.pre.size(-1);
  const Segments cut = cut_into_segments(a.pre.size(0), ragged ? 0 : a.pre.size(1), a.offsets);
  const std::vector<float> ones(columns, 1.f);
  const float* mask = a.mask ? a.mask->const_data_ptr<float>() : ones.data();
  const int64_t mask_sample = a.mask && a.mask->dim() == 2 ? columns : 0;
  const int64_t room = cut.slots * columns;
  std::vector<float> workspace(a.stats ? 3 * room : 0);
  const Moments partial{workspace.data(), workspace.data() + room, workspace.data() + 2 * room};
  Moments result{};
  if (a.stats)
    result = {a.mean.mutable_data_ptr<float>(), a.m2.mutable_data_ptr<float>(), a.l1.mutable_data_ptr<float>()};

  const int64_t block_width = block_columns(columns, cut.all.size());
  const int64_t blocks = (columns + block_width - 1) / block_width, tasks = cut.all.size() * blocks;
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t lo, int64_t hi) {
    for (int64_t task = lo; task < hi; ++task) {
      const Segment& s = cut.all[task / blocks];
      const int64_t c = task % blocks * block_width, width = std::min(block_width, columns - c);
      const float *factor = mask + s.sample * mask_sample + c, *one = ones.data() + c;
      const float *mask_in = a.mask_before ? factor : one, *mask_out = a.mask_before ? one : factor;
      Rows<const T> pre = rows_of<T>(a.pre, ragged, s, c), up;
      if constexpr (GATED) up = rows_of<T>(*a.up, ragged, s, c);
      Rows<T> out = rows_into<T>(a.out, ragged, s, c);
      if (!a.stats) {
        activate_rows<A, GATED>(pre, up, out, mask_in, mask_out, s.tokens, width);
        continue;
      }
      const Moments moments = s.slot < 0 ? result + (s.sample * columns + c) : partial + (s.slot * columns + c);
      clear(moments, width);
      for (int64_t t = 0; t < s.tokens; t += kRows) {
        const int64_t rows = std::min(kRows, s.tokens - t);
        activate_rows<A, GATED>(pre, up, out, mask_in, mask_out, rows, width);
        add_moments(moments, out, rows, t, width);
        pre.data += rows * pre.token, out.data += rows * out.token;
        if constexpr (GATED) up.data += rows * up.token;
      }
    }
  });

  if (ragged) zero_outside(static_cast<T*>(a.out.mutable_data_ptr()), a.offsets, a.pre.size(0), columns);
  if (!a.stats) return;
  std::vector<int64_t> tokens(cut.slots);
  for (const Segment& s : cut.all)
    if (s.slot >= 0) tokens[s.slot] = s.tokens;
  int64_t count = 0;
  merge_segments(cut, [&](int64_t sample, int64_t slot, bool first) {
    const Moments to = result + sample * columns;
    if (first) clear(to, columns), count = 0;
    merge_moments(to, partial + slot * columns, tokens[slot], count, columns);
    count += tokens[slot];
  });
}

// Shapes, dtypes and offsets are checked by pyprune/ops/act_fwd_stats.py, the only caller. mask: float32, contiguous,
// [F] or [B, F]; outputs: contiguous.
void act_fwd_stats(const Tensor& pre, std::optional<Tensor> up, int64_t act, std::optional<Tensor> mask,
                   bool mask_before, std::optional<Tensor> cu_seqlens, bool stats, Tensor out, Tensor mean, Tensor m2,
                   Tensor l1) {
  const std::vector<int64_t> offsets = read_offsets(cu_seqlens);
  const Arguments a{pre, up ? &*up : nullptr, mask ? &*mask : nullptr, mask_before, offsets, stats, out, mean, m2, l1};
  for_act(act, up.has_value(), [&]<Act A, bool GATED>() {
    switch (pre.scalar_type()) {
      case ScalarType::Float:
        return run<A, GATED, float>(a);
      case ScalarType::BFloat16:
        return run<A, GATED, bf16>(a);
      case ScalarType::Half:
        return run<A, GATED, f16>(a);
      default:
        STD_TORCH_CHECK(false, "act_fwd_stats: pre must be float32, bfloat16 or float16");
    }
  });
}

}  // namespace
}  // namespace pyprune

STABLE_TORCH_LIBRARY_FRAGMENT(pyprune_cpp, m) {
  m.def(
      "act_fwd_stats(Tensor pre, Tensor? up, int act, Tensor? mask, bool mask_before, Tensor? cu_seqlens, bool stats, "
      "Tensor(a!) out, Tensor(b!) mean, Tensor(c!) m2, Tensor(d!) l1) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pyprune_cpp, CPU, m) { m.impl("act_fwd_stats", TORCH_BOX(&pyprune::act_fwd_stats)); }
