// Glue between torch's stable ABI and the kernels of prod_reduce.cuh: workspace, dtype switch, stream.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "cuda/prod_reduce.cuh"

namespace pyprune::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Shapes, dtypes and contiguous rows are checked by pyprune/ops/prod_reduce.py, the only caller. It sends nothing
// empty.
void prod_reduce(const Tensor& x, const Tensor& y, std::optional<Tensor> cu_seqlens, int64_t group, int64_t mod_group,
                 Tensor out) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  void* stream_handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream_handle));
  const auto stream = static_cast<cudaStream_t>(stream_handle);

  const bool ragged = cu_seqlens.has_value(), probed = y.dim() > x.dim();
  Rows rows{x.const_data_ptr(), y.const_data_ptr(), 0, x.stride(-2), 0, y.stride(-2)};
  rows.y_probe = probed ? y.stride(0) : 0, rows.probes = probed ? y.size(0) : 1;
  rows.tokens = x.size(-2);
  rows.columns = x.size(-1);
  rows.samples = ragged ? cu_seqlens->numel() - 1 : x.size(0);
  if (ragged) {
    rows.cu_seqlens = cu_seqlens->const_data_ptr();
    rows.wide_offsets = cu_seqlens->scalar_type() == ScalarType::Long;
  } else {
    rows.x_sample = x.stride(0), rows.y_sample = y.stride(-3);
  }
  const int64_t outputs = out.size(-1), results = rows.probes * rows.samples;
  if (rows.samples == 0) return;
  Tensor sums = outputs == rows.columns ? out : torch::stable::new_empty(x, {results, rows.columns}, ScalarType::Float);

  const int64_t slots = ragged ? slot_count(rows.tokens, rows.samples) : rows.samples * segment_count(rows.tokens);
  const int64_t partials = rows.tokens > kSegment ? rows.probes * slots : 0;
  Tensor partial = torch::stable::new_empty(x, {partials, rows.columns}, ScalarType::Float);
  float* const s = sums.mutable_data_ptr<float>();
  float* const p = partial.mutable_data_ptr<float>();
  switch (x.scalar_type()) {
    case ScalarType::Float:
      launch_prod_reduce<float>(rows, slots, s, p, stream);
      break;
    case ScalarType::BFloat16:
      launch_prod_reduce<__nv_bfloat16>(rows, slots, s, p, stream);
      break;
    case ScalarType::Half:
      launch_prod_reduce<__half>(rows, slots, s, p, stream);
      break;
    default:
      STD_TORCH_CHECK(false, "prod_reduce: x must be float32, bfloat16 or float16");
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  if (outputs == rows.columns) return;
  launch_fold(s, out.mutable_data_ptr<float>(), results, rows.columns, outputs, mod_group > 0, stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace
}  // namespace pyprune::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(pyprune_cuda, m) {
  m.def("prod_reduce(Tensor x, Tensor y, Tensor? cu_seqlens, int group, int mod_group, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pyprune_cuda, CUDA, m) { m.impl("prod_reduce", TORCH_BOX(&pyprune::cuda::prod_reduce)); }
