// The backward of an activation, gated or not, and the gradients of masks on its output and its input, in one pass.
//
// Everything is read once and the sums over tokens stay in the cache: the mask gradients cost no bytes.
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

// Summed by themselves, so that a long sample's running sums take 64 additions and not 512.
constexpr int64_t kRows = 8;

template <typename T>
struct Block {
  Rows<const T> grad, pre, up;
  Rows<T> dpre, dup;
  // Factors of a column before and after the activation; one of them is the mask and the other all ones.
  const float *mask_in, *mask_out;
  float *after, *before;
};

// A row at a time: with several, rows a multiple of 4 KB apart make every load wait for the store of the row before it,
// whose address looks the same to the processor.
template <Act A, bool GATED, typename T>
PYPRUNE_STORE_CLONES void add_block(const Block<T>& b, int64_t tokens, int64_t columns) {
  const float *mask_in = b.mask_in, *mask_out = b.mask_out;
  float sum_after[kBlockColumns], sum_before[kBlockColumns];
  for (int64_t first = 0; first < tokens; first += kRows) {
    for (int64_t c = 0; c < columns; ++c) sum_after[c] = sum_before[c] = 0.f;
    for (int64_t t = first; t < std::min(tokens, first + kRows); ++t) {
      const T *grad = b.grad.row(t), *pre = b.pre.row(t), *up = GATED ? b.up.row(t) : nullptr;
      T *dpre = b.dpre.row(t), *dup = GATED ? b.dup.row(t) : nullptr;
#pragma GCC ivdep
      for (int64_t c = 0; c < columns; ++c) {
        const float g = load(grad[c]), p = load(pre[c]), gu = GATED ? g * load(up[c]) : g;
        const Activation a = activate<A>(p * mask_in[c]);
        const float dz = gu * a.slope * mask_out[c];
        store(dpre + c, dz * mask_in[c]);
        if constexpr (GATED) store(dup + c, g * a.value * mask_out[c]);
        sum_after[c] += gu * a.value;
        sum_before[c] += p * dz;
      }
    }
    float *after = b.after, *before = b.before;
#pragma GCC ivdep
    for (int64_t c = 0; c < columns; ++c) {
      after[c] += sum_after[c];
      before[c] += sum_before[c];
    }
  }
}

struct Arguments {
  const Tensor &grad, &pre;
  const Tensor* up;
  const Tensor* mask;
  bool mask_before;
  const std::vector<int64_t>& offsets;
  Tensor &dpre, &dup, &after, &before;
};

template <Act A, bool GATED, typename T>
void run(const Arguments& a) {
  const bool ragged = !a.offsets.empty();
  const int64_t columns = a.pre.size(-1);
  const Segments cut = cut_into_segments(a.after.size(0), ragged ? 0 : a.pre.size(1), a.offsets);
  const std::vector<float> ones(columns, 1.f);
  const float* mask = a.mask ? a.mask->const_data_ptr<float>() : ones.data();
  const int64_t mask_sample = a.mask && a.mask->dim() == 2 ? columns : 0;
  float *after = a.after.mutable_data_ptr<float>(), *before = a.before.mutable_data_ptr<float>();
  std::vector<float> workspace(2 * cut.slots * columns);
  float* const second = workspace.data() + cut.slots * columns;

  const int64_t block_width = block_columns(columns, cut.all.size());
  const int64_t blocks = (columns + block_width - 1) / block_width, tasks = cut.all.size() * blocks;
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t lo, int64_t hi) {
    for (int64_t task = lo; task < hi; ++task) {
      const Segment& s = cut.all[task / blocks];
      const int64_t c = task % blocks * block_width, width = std::min(block_width, columns - c);
      const float *factor = mask + s.sample * mask_sample + c, *one = ones.data() + c;
      const int64_t row = (s.slot < 0 ? s.sample : s.slot) * columns + c;
      Block<T> block{rows_of<T>(a.grad, ragged, s, c),
                     rows_of<T>(a.pre, ragged, s, c),
                     {},
                     rows_into<T>(a.dpre, ragged, s, c),
                     {},
                     a.mask_before ? factor : one,
                     a.mask_before ? one : factor,
                     (s.slot < 0 ? after : workspace.data()) + row,
                     (s.slot < 0 ? before : second) + row};
      if constexpr (GATED) {
        block.up = rows_of<T>(*a.up, ragged, s, c);
        block.dup = rows_into<T>(a.dup, ragged, s, c);
      }
      std::fill_n(block.after, width, 0.f);
      std::fill_n(block.before, width, 0.f);
      add_block<A, GATED>(block, s.tokens, width);
    }
  });

  merge_segments(cut, [&](int64_t sample, int64_t slot, bool first) {
    for (int64_t c = 0; c < columns; ++c) {
      const float add_after = workspace[slot * columns + c], add_before = second[slot * columns + c];
      float &sum_after = after[sample * columns + c], &sum_before = before[sample * columns + c];
      sum_after = first ? add_after : sum_after + add_after;
      sum_before = first ? add_before : sum_before + add_before;
    }
  });
  if (ragged) {
    zero_outside(static_cast<T*>(a.dpre.mutable_data_ptr()), a.offsets, a.pre.size(0), columns);
    if constexpr (GATED) zero_outside(static_cast<T*>(a.dup.mutable_data_ptr()), a.offsets, a.pre.size(0), columns);
  }
}

// Shapes, dtypes and offsets are checked by pyprune/ops/act_bwd_maskgrad.py, the only caller. mask: float32,
// contiguous, [F] or [B, F]; outputs: contiguous.
void act_bwd_maskgrad(const Tensor& grad, const Tensor& pre, std::optional<Tensor> up, int64_t act,
                      std::optional<Tensor> mask, bool mask_before, std::optional<Tensor> cu_seqlens, Tensor dpre,
                      Tensor dup, Tensor after, Tensor before) {
  const std::vector<int64_t> offsets = read_offsets(cu_seqlens);
  const Arguments a{grad,  pre,   up ? &*up : nullptr, mask ? &*mask : nullptr, mask_before, offsets, dpre, dup,
                    after, before};
  for_act(act, up.has_value(), [&]<Act A, bool GATED>() {
    switch (pre.scalar_type()) {
      case ScalarType::Float:
        return run<A, GATED, float>(a);
      case ScalarType::BFloat16:
        return run<A, GATED, bf16>(a);
      case ScalarType::Half:
        return run<A, GATED, f16>(a);
      default:
        STD_TORCH_CHECK(false, "act_bwd_maskgrad: pre must be float32, bfloat16 or float16");
    }
  });
}

}  // namespace
}  // namespace pyprune

STABLE_TORCH_LIBRARY_FRAGMENT(pyprune_cpp, m) {
  m.def(
      "act_bwd_maskgrad(Tensor grad, Tensor pre, Tensor? up, int act, Tensor? mask, bool mask_before, "
      "Tensor? cu_seqlens, Tensor(a!) dpre, Tensor(b!) dup, Tensor(c!) after, Tensor(d!) before) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pyprune_cpp, CPU, m) { m.impl("act_bwd_maskgrad", TORCH_BOX(&pyprune::act_bwd_maskgrad)); }
