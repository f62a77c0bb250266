// out = scale * tensor[rows][:, columns], padded with zeros, for all the weights of a pruning plan in one parallel
// loop.
//
// Nothing is computed, so the floor is a copy. Kept rows are copied whole. Kept columns are packed from a row that is
// read in order (AVX-512's compress), because at a random half of the columns every cache line is needed anyway.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "cpu/simd.h"

#ifdef PYPRUNE_X86
#include <immintrin.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace pyprune {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using OptionalTensors = std::vector<std::optional<Tensor>>;

// Read and written by one task: BERT-base's weights make some thousand, so that the threads end together, and the pages
// that the kernel has just zeroed for one are still in L2.
constexpr int64_t kTaskBytes = 256 * 1024;

// Outputs are new memory as a rule, and a page fault each 4 kB costs more than the copy: asked for at once, BERT-base's
// 170 MB take 48 ms and not 64. Asking for pages that are there would add 4 ms to 20, so one of them is looked at
// first. Advice only: a kernel before Linux 5.14 refuses it, and the pages come one by one.
void populate(char* begin, char* end) {
#ifdef MADV_POPULATE_WRITE
  static const uintptr_t page = sysconf(_SC_PAGESIZE);
  const uintptr_t first = reinterpret_cast<uintptr_t>(begin) / page * page;
  const uintptr_t size = reinterpret_cast<uintptr_t>(end) - first;
  if (size < 8 * page) return;
  unsigned char resident = 0;
  const int failed = mincore(reinterpret_cast<void*>(first + size / page / 2 * page), page, &resident);
  if (failed == 0 && (resident & 1) == 0) madvise(reinterpret_cast<void*>(first), size, MADV_POPULATE_WRITE);
#endif
}

// The kept columns of a matrix: their sorted indices, and the same as one bit for each column of the source.
struct Columns {
  const int64_t* index;
  int64_t kept;
  std::vector<uint8_t> bits;

  Columns(const int64_t* index, int64_t kept, int64_t width) : index(index), kept(kept), bits((width + 31) / 32 * 4) {
    for (int64_t i = 0; i < kept; ++i) bits[index[i] / 8] |= 1 << index[i] % 8;
  }
};

template <typename T>
void gather(void* out, const void* in, const Columns& columns) {
  for (int64_t i = 0; i < columns.kept; ++i) static_cast<T*>(out)[i] = static_cast<const T*>(in)[columns.index[i]];
}

#ifdef PYPRUNE_X86
// A whole vector is stored while there is room for one, its surplus to be overwritten by the next: masked stores are
// for the end of the row.
__attribute__((target("avx512f,popcnt"))) void compress4(void* out, const void* in, const Columns& columns) {
  auto* to = static_cast<uint32_t*>(out);
  auto* const end = to + columns.kept;
  auto* from = static_cast<const uint32_t*>(in);
  for (size_t i = 0; i < columns.bits.size(); i += 2, from += 16) {
    uint16_t mask;
    std::memcpy(&mask, &columns.bits[i], sizeof mask);
    if (mask == 0) continue;
    const __m512i packed = _mm512_maskz_compress_epi32(mask, _mm512_maskz_loadu_epi32(mask, from));
    const int count = __builtin_popcount(mask);
    if (end - to >= 16)
      _mm512_storeu_si512(to, packed);
    else
      _mm512_mask_storeu_epi32(to, static_cast<__mmask16>((1u << count) - 1), packed);
    to += count;
  }
}

__attribute__((target("avx512bw,avx512vbmi2,popcnt"))) void compress2(void* out, const void* in,
                                                                      const Columns& columns) {
  auto* to = static_cast<uint16_t*>(out);
  auto* const end = to + columns.kept;
  auto* from = static_cast<const uint16_t*>(in);
  for (size_t i = 0; i < columns.bits.size(); i += 4, from += 32) {
    uint32_t mask;
    std::memcpy(&mask, &columns.bits[i], sizeof mask);
    if (mask == 0) continue;
    const __m512i packed = _mm512_maskz_compress_epi16(mask, _mm512_maskz_loadu_epi16(mask, from));
    const int count = __builtin_popcount(mask);
    if (end - to >= 32)
      _mm512_storeu_si512(to, packed);
    else
      _mm512_mask_storeu_epi16(to, static_cast<__mmask32>((uint64_t{1} << count) - 1), packed);
    to += count;
  }
}
#endif

using Pack = void (*)(void* out, const void* in, const Columns& columns);

Pack pack_of(int64_t item) {
#ifdef PYPRUNE_X86
  if (item == 4 && __builtin_cpu_supports("avx512f")) return compress4;
  if (item == 2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi2")) return compress2;
#endif
  return item == 2 ? gather<uint16_t> : item == 4 ? gather<uint32_t> : gather<uint64_t>;
}

// (value * row scale) * column scale with one rounding to the storage type: the reference's order, hence its bits. The
// row was just packed and is still in L1.
template <typename T>
PYPRUNE_INTO_CLONE void scale_values(T* row, float by, const float* columns, int64_t n) {
  if (columns == nullptr) {
    for (int64_t i = 0; i < n; ++i) store(row + i, load(row[i]) * by);
  } else {
    for (int64_t i = 0; i < n; ++i) store(row + i, load(row[i]) * by * columns[i]);
  }
}

PYPRUNE_STORE_CLONES void scale_row(float* row, float by, const float* columns, int64_t n) {
  scale_values(row, by, columns, n);
}
PYPRUNE_STORE_CLONES void scale_row(bf16* row, float by, const float* columns, int64_t n) {
  scale_values(row, by, columns, n);
}
PYPRUNE_STORE_CLONES void scale_row(f16* row, float by, const float* columns, int64_t n) {
  scale_values(row, by, columns, n);
}

int64_t item_size(ScalarType type) {
  switch (type) {
    case ScalarType::BFloat16:
    case ScalarType::Half:
    case ScalarType::Short:
      return 2;
    case ScalarType::Float:
    case ScalarType::Int:
      return 4;
    case ScalarType::Double:
    case ScalarType::Long:
      return 8;
    default:
      STD_TORCH_CHECK(false, "gather_compact: dtypes of 2, 4 or 8 bytes only");
  }
}

template <typename T>
const T* data_or_null(const std::optional<Tensor>& t) {
  return t ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

// One tensor's share. A vector is a matrix of one row whose columns are cut.
struct Part {
  ScalarType type;
  int64_t item, kept_rows, kept_columns, out_rows, out_columns, source_stride;
  const char* source;
  char* out;
  const int64_t* row_index;
  std::optional<Columns> columns;
  const float *row_scale, *column_scale;
  Pack pack;

  Part(const Tensor& tensor, const std::optional<Tensor>& rows, const std::optional<Tensor>& cols,
       const std::optional<Tensor>& row_scales, const std::optional<Tensor>& column_scales, const Tensor& result)
      : type(tensor.scalar_type()), item(item_size(type)), pack(pack_of(item)) {
    const bool vector = tensor.dim() == 1;
    const auto& column_kept = vector ? rows : cols;
    const int64_t width = tensor.size(-1);
    kept_columns = column_kept ? column_kept->numel() : width;
    kept_rows = vector ? 1 : rows ? rows->numel() : tensor.size(0);
    out_columns = result.size(-1);
    out_rows = vector ? 1 : result.size(0);
    source_stride = vector ? 0 : tensor.stride(0);
    source = static_cast<const char*>(tensor.const_data_ptr());
    out = static_cast<char*>(result.mutable_data_ptr());
    row_index = vector ? nullptr : data_or_null<int64_t>(rows);
    if (column_kept) columns.emplace(data_or_null<int64_t>(column_kept), kept_columns, width);
    row_scale = vector ? nullptr : data_or_null<float>(row_scales);
    column_scale = data_or_null<float>(vector ? row_scales : column_scales);
  }

  int64_t rows_of_a_task() const { return std::max<int64_t>(1, kTaskBytes / (2 * item * out_columns)); }

  void write_rows(int64_t begin, int64_t end) const {
    populate(out + begin * out_columns * item, out + end * out_columns * item);
    for (int64_t r = begin; r < end; ++r) write_row(r);
  }

 private:
  void write_row(int64_t r) const {
    char* to = out + r * out_columns * item;
    if (r >= kept_rows) return static_cast<void>(std::memset(to, 0, out_columns * item));
    const char* from = source + (row_index ? row_index[r] : r) * source_stride * item;
    if (columns)
      pack(to, from, *columns);
    else
      std::memcpy(to, from, kept_columns * item);
    if (row_scale || column_scale) scale(to, row_scale ? row_scale[r] : 1.f);
    std::memset(to + kept_columns * item, 0, (out_columns - kept_columns) * item);
  }

  void scale(char* row, float by) const {
    switch (type) {
      case ScalarType::Float:
        return scale_row(reinterpret_cast<float*>(row), by, column_scale, kept_columns);
      case ScalarType::BFloat16:
        return scale_row(reinterpret_cast<bf16*>(row), by, column_scale, kept_columns);
      default:
        return scale_row(reinterpret_cast<f16*>(row), by, column_scale, kept_columns);
    }
  }
};

struct Task {
  const Part* part;
  int64_t begin, end;
};

// Shapes, dtypes, indices and contiguous rows are checked or made by pyprune/ops/gather_compact.py, the only caller.
void gather_compact(Tensors tensors, OptionalTensors rows, OptionalTensors columns, OptionalTensors row_scales,
                    OptionalTensors column_scales, Tensors outs) {
  std::vector<Part> parts;
  parts.reserve(tensors.size());
  std::vector<Task> tasks;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (outs[i].numel() == 0) continue;
    const Part& part = parts.emplace_back(tensors[i], rows[i], columns[i], row_scales[i], column_scales[i], outs[i]);
    const int64_t step = part.rows_of_a_task();
    for (int64_t r = 0; r < part.out_rows; r += step) tasks.push_back({&part, r, std::min(part.out_rows, r + step)});
  }
  torch::stable::parallel_for(0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t lo, int64_t hi) {
    for (int64_t t = lo; t < hi; ++t) tasks[t].part->write_rows(tasks[t].begin, tasks[t].end);
  });
}

}  // namespace
}  // namespace pyprune

STABLE_TORCH_LIBRARY_FRAGMENT(pyprune_cpp, m) {
  m.def(
      "gather_compact(Tensor[] tensors, Tensor?[] rows, Tensor?[] columns, Tensor?[] row_scales, "
      "Tensor?[] column_scales, Tensor(a!)[] outs) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pyprune_cpp, CPU, m) { m.impl("gather_compact", TORCH_BOX(&pyprune::gather_compact)); }
