// Glue between torch's stable ABI and the kernel of gather_compact.cuh: the table of tensors, the stream.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <memory>
#include <optional>
#include <vector>

#include "cuda/gather_compact.cuh"

namespace pyprune::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using OptionalTensors = std::vector<std::optional<Tensor>>;

Kind kind_of(ScalarType type, bool scaled) {
  switch (type) {
    case ScalarType::Float:
      return scaled ? Kind::float32 : Kind::copy4;
    case ScalarType::BFloat16:
      return scaled ? Kind::bfloat16 : Kind::copy2;
    case ScalarType::Half:
      return scaled ? Kind::float16 : Kind::copy2;
    case ScalarType::Short:
      return Kind::copy2;
    case ScalarType::Int:
      return Kind::copy4;
    case ScalarType::Double:
    case ScalarType::Long:
      return Kind::copy8;
    default:
      STD_TORCH_CHECK(false, "gather_compact: dtypes of 2, 4 or 8 bytes only");
  }
}

template <typename T>
const T* data_or_null(const std::optional<Tensor>& t) {
  return t ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

Cut describe(const Tensor& tensor, const std::optional<Tensor>& rows, const std::optional<Tensor>& columns,
             const std::optional<Tensor>& row_scale, const std::optional<Tensor>& column_scale, const Tensor& out) {
  const bool vector = tensor.dim() == 1;
  const std::optional<Tensor> none;
  const auto &down = vector ? none : rows, &across = vector ? rows : columns;
  const auto &down_scale = vector ? none : row_scale, &across_scale = vector ? row_scale : column_scale;
  Cut cut{};
  cut.source = tensor.const_data_ptr();
  cut.out = out.mutable_data_ptr();
  cut.rows = data_or_null<int64_t>(down);
  cut.columns = data_or_null<int64_t>(across);
  cut.row_scale = data_or_null<float>(down_scale);
  cut.column_scale = data_or_null<float>(across_scale);
  cut.source_row = vector ? 0 : tensor.stride(0);
  cut.kept_rows = vector ? 1 : down ? down->numel() : tensor.size(0);
  cut.kept_columns = across ? across->numel() : tensor.size(-1);
  cut.out_rows = vector ? 1 : out.size(0);
  cut.out_columns = out.size(-1);
  cut.kind = kind_of(tensor.scalar_type(), cut.row_scale || cut.column_scale);
  const int64_t lane = columns_of_a_tile(cut.kind) / 32;
  cut.vector_loads = reinterpret_cast<uintptr_t>(cut.source) % 16 == 0 && cut.source_row % lane == 0;
  cut.vector_stores = reinterpret_cast<uintptr_t>(cut.out) % 16 == 0 && cut.out_columns % lane == 0;
  return cut;
}

// Shapes, dtypes and contiguous rows are checked or made by pyprune/ops/gather_compact.py, the only caller.
void gather_compact(Tensors tensors, OptionalTensors rows, OptionalTensors columns, OptionalTensors row_scales,
                    OptionalTensors column_scales, Tensors outs) {
  if (tensors.empty()) return;
  const int32_t device = tensors[0].get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));

  const auto table = std::make_unique<Table>();
  const auto launch = [&] {
    if (table->count == 0) return;
    launch_gather_compact(*table, static_cast<cudaStream_t>(stream));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    table->count = 0;
  };
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (outs[i].numel() == 0) continue;
    table->cuts[table->count++] = describe(tensors[i], rows[i], columns[i], row_scales[i], column_scales[i], outs[i]);
    if (table->count == kCuts) launch();
  }
  launch();
}

}  // namespace
}  // namespace pyprune::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(pyprune_cuda, m) {
  m.def(
      "gather_compact(Tensor[] tensors, Tensor?[] rows, Tensor?[] columns, Tensor?[] row_scales, "
      "Tensor?[] column_scales, Tensor(a!)[] outs) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pyprune_cuda, CUDA, m) {
  m.impl("gather_compact", TORCH_BOX(&pyprune::cuda::gather_compact));
}
