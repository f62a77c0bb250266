// Row and column sums of an element score of a linear layer's weight gradient, which never exists as a whole.
//
// With g_b = sum over the tokens t of sample b of dy[t, :] (outer) x[t, :], and g their sum, the score of an element is
// |w g|, w^2 sum_b g_b^2, or |w g - w^2 sum_b g_b^2 / 2|. It costs one weight-gradient product: a tile of g_b stays in
// registers for a sample's tokens, is squared into a block of sums that stays in L2, and is forgotten.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/gemm_tile.h"
#include "cpu/segments.h"
#include "cpu/simd.h"

namespace pyprune {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

enum Mode { kAbs, kSquare, kMix };

// Tokens of a panel. A panel of x (32 KB) stays in L1 while those of dy go by.
constexpr int64_t kDepth = 256;

int64_t level2_bytes() {
  int64_t bytes = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
  bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
  return bytes > 0 ? bytes : 1 << 20;
}

// `depth` tokens from `token` on, counted through the batch, whose products are summed in registers. Squares need the
// gradient of a whole sample: chunks that do not close one are added up first.
struct Chunk {
  int64_t token, depth;
  bool opens, closes;
};

// At most kDepth tokens each, as even as possible: the cut depends on the sample alone.
void cut(std::vector<Chunk>& chunks, int64_t begin, int64_t end, bool whole) {
  const int64_t count = (end - begin + kDepth - 1) / kDepth;
  for (int64_t c = 0; c < count; ++c) {
    const int64_t first = begin + (end - begin) * c / count, last = begin + (end - begin) * (c + 1) / count;
    chunks.push_back({first, last - first, !whole || c == 0, !whole || c == count - 1});
  }
}

std::vector<Chunk> cut_batch(int64_t samples, int64_t tokens, const std::vector<int64_t>& offsets, Mode mode) {
  const bool ragged = !offsets.empty();
  const auto begin = [&](int64_t b) { return ragged ? offsets[b] : b * tokens; };
  const int64_t count = ragged ? offsets.size() - 1 : samples;
  std::vector<Chunk> chunks;
  // Without squares the batch is one sum over tokens.
  if (mode == kAbs) cut(chunks, begin(0), begin(count), false);
  for (int64_t b = 0; mode != kAbs && b < count; ++b) cut(chunks, begin(b), begin(b + 1), true);
  return chunks;
}

// The block of tiles that one task sums, chosen by its cost in cycles a token: 32 multiply-adds a cycle; an element of
// dy takes 0.9 to bring and pack, one of x, in wider pieces, 0.5. The sums fill most of the L2 cache. Which tiles are
// in a block changes no bit of any result.
struct Blocks {
  int64_t rows, columns;  // tiles of one block
  int64_t down, across;   // blocks

  Blocks(int64_t tiles_down, int64_t tiles_across, int64_t tile_bytes, int64_t threads) {
    const int64_t most = level2_bytes() / 10 * 6 / tile_bytes;
    double best = std::numeric_limits<double>::infinity();
    for (int64_t r = 1; r <= std::min(tiles_down, most); ++r)
      for (int64_t c = 1; c <= std::min(tiles_across, most / r); ++c) {
        const int64_t m = (tiles_down + r - 1) / r, n = (tiles_across + c - 1) / c;
        const double cycles = kTile / 32. * r * c + 0.9 * kTileRows * r + 0.5 * kTileColumns * c;
        const double cost = static_cast<double>((m * n + threads - 1) / threads) * cycles;
        if (cost < best) best = cost, rows = r, columns = c, down = m, across = n;
      }
  }
};

// Rows of a batch by token number; a ragged batch is one sample.
template <typename T>
struct Rows {
  const T* data;
  int64_t tokens, sample, token;

  explicit Rows(const Tensor& t, bool ragged)
      : data(static_cast<const T*>(t.const_data_ptr())),
        tokens(ragged ? std::numeric_limits<int64_t>::max() : t.size(1)),
        sample(ragged ? 0 : t.stride(0)),
        token(t.stride(ragged ? 0 : 1)) {}
  const T* operator[](int64_t n) const { return data + n / tokens * sample + n % tokens * token; }
};

inline const float* widen(float*, const float* in, int64_t) { return in; }

PYPRUNE_CLONES const float* widen(float* __restrict out, const bf16* __restrict in, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = load(in[i]);
  return out;
}

PYPRUNE_CLONES const float* widen(float* __restrict out, const f16* __restrict in, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = load(in[i]);
  return out;
}

// Panels begin an odd number of cache lines apart: in L1 they lie in different sets.
constexpr int64_t panel_stride(int64_t width) { return (kDepth * width / 16 | 1) * 16; }

// Panels that are packed side by side: each is on pages of its own, and the first-level TLB holds few to write to.
constexpr int64_t kGroup = 8;

// The columns [first, first + count) of some tokens as panels `[depth][width]`; zeros fill the last one.
template <int64_t width, typename T>
void pack(float* panels, const T* const* rows, int64_t depth, int64_t first, int64_t count) {
  struct Four {
    float v[4];
  };
  float wide[kGroup * width];
  for (int64_t g = 0; g < count; g += kGroup * width, panels += kGroup * panel_stride(width)) {
    const int64_t live = std::min(kGroup * width, count - g), whole = live / width * width;
    for (int64_t k = 0; k < depth; ++k) {
      // Rows are on different pages, at which the hardware's prefetcher stops.
      if (k + 8 < depth)
        for (int64_t i = 0; i < live; i += 64 / sizeof(T)) __builtin_prefetch(rows[k + 8] + first + g + i);
      const float* row = widen(wide, rows[k] + first + g, live);
      float* out = panels + k * width;
      for (int64_t j = 0; j < whole; j += width, out += panel_stride(width))
        for (int64_t i = 0; i < width; i += 4)
          *reinterpret_cast<Four*>(out + i) = *reinterpret_cast<const Four*>(row + j + i);
      if (whole < live) std::fill(std::copy(row + whole, row + live, out), out + width, 0.f);
    }
  }
}

PYPRUNE_CLONES void add(float* __restrict sum, const float* __restrict tile) {
  for (int64_t i = 0; i < kTile; ++i) sum[i] += tile[i];
}

PYPRUNE_CLONES void add_squares(float* __restrict sum, const float* __restrict tile) {
  for (int64_t i = 0; i < kTile; ++i) sum[i] += tile[i] * tile[i];
}

// Scores over w, in place.
PYPRUNE_CLONES void score(float* __restrict w, const float* __restrict total, const float* __restrict squares,
                          Mode mode) {
  if (mode == kAbs) {
    for (int64_t i = 0; i < kTile; ++i) w[i] = std::abs(w[i] * total[i]);
  } else if (mode == kSquare) {
    for (int64_t i = 0; i < kTile; ++i) w[i] = w[i] * w[i] * squares[i];
  } else {
    for (int64_t i = 0; i < kTile; ++i) w[i] = std::abs(w[i] * (total[i] - 0.5f * w[i] * squares[i]));
  }
}

PYPRUNE_CLONES void sum_tile(const float* __restrict tile, float* __restrict rows, float* __restrict columns) {
  std::fill(columns, columns + kTileColumns, 0.f);
  for (int64_t i = 0; i < kTileRows; ++i, tile += kTileColumns) {
    for (int64_t j = 0; j < kTileColumns; ++j) columns[j] += tile[j];
    float lane[8];
    for (int64_t j = 0; j < 8; ++j) lane[j] = (tile[j] + tile[j + 16]) + (tile[j + 8] + tile[j + 24]);
    rows[i] = ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
  }
}

// out[i] = the sum of `count` rows of partial sums, in order; in double, because a wide layer has a thousand of them.
PYPRUNE_CLONES void add_partials(float* out, const float* partials, int64_t count, int64_t stride, int64_t width) {
  double sums[64] = {};
  for (int64_t k = 0; k < count; ++k)
    for (int64_t i = 0; i < width; ++i) sums[i] += partials[k * stride + i];
  for (int64_t i = 0; i < width; ++i) out[i] = static_cast<float>(sums[i]);
}

// A block's sums and panels, about as much as a core's L2, and kept for the thread's life: touching new pages on every
// call took 3 % of the time of a 768 x 768 layer.
float* workspace(int64_t count) {
  thread_local Buffer held = buffer(0);
  thread_local int64_t size = 0;
  if (size < count) held = buffer(size = count);
  return held.get();
}

int64_t up_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

template <typename T>
void scores(const Tensor& dy, const Tensor& x, const Tensor& w, const std::vector<int64_t>& offsets, Mode mode,
            Tensor& rows, Tensor& columns) {
  const bool ragged = !offsets.empty();
  const int64_t p = w.size(0), d = w.size(1), w_row = w.stride(0), tiles_down = up_to(p, kTileRows) / kTileRows,
                tiles_across = up_to(d, kTileColumns) / kTileColumns;
  const Rows<T> left(dy, ragged), right(x, ragged);
  const T* const weight = static_cast<const T*>(w.const_data_ptr());
  const std::vector<Chunk> chunks = cut_batch(dy.size(0), ragged ? 0 : dy.size(1), offsets, mode);
  const bool cut = std::any_of(chunks.begin(), chunks.end(), [](const Chunk& c) { return !c.closes; });
  const TileKernel kernel = tile_kernel();

  // A tile's sums lie side by side: of squares, of gradients, and of a sample's chunks so far.
  const int64_t squares_at = 0, total_at = (mode != kAbs) * kTile, partial_at = total_at + (mode != kSquare) * kTile;
  const int64_t tile_sums = partial_at + cut * kTile;
  const Blocks blocks(tiles_down, tiles_across, tile_sums * sizeof(float), torch::stable::get_num_threads());
  const int64_t left_panel = panel_stride(kTileRows), right_panel = panel_stride(kTileColumns);
  const int64_t row_stride = up_to(p, kTileRows), column_stride = up_to(d, kTileColumns);
  const Buffer row_partials = buffer(tiles_across * row_stride), column_partials = buffer(tiles_down * column_stride);

  torch::stable::parallel_for(0, blocks.down * blocks.across, 1, [&](int64_t lo, int64_t hi) {
    const int64_t sums_count = blocks.rows * blocks.columns * tile_sums, a_count = blocks.rows * left_panel;
    float* const sums = workspace(sums_count + a_count + blocks.columns * right_panel);
    float *const a = sums + sums_count, *const b = a + a_count;
    const T *left_rows[kDepth], *right_rows[kDepth];
    alignas(64) float tile[kTile], wide[kTileColumns];
    for (int64_t block = lo; block < hi; ++block) {
      const int64_t m0 = block / blocks.across * blocks.rows, n0 = block % blocks.across * blocks.columns;
      const int64_t m = std::min(blocks.rows, tiles_down - m0), n = std::min(blocks.columns, tiles_across - n0);
      const int64_t i0 = m0 * kTileRows, j0 = n0 * kTileColumns;
      const int64_t height = std::min(p - i0, m * kTileRows), width = std::min(d - j0, n * kTileColumns);
      std::fill(sums, sums + m * n * tile_sums, 0.f);

      for (const Chunk& chunk : chunks) {
        for (int64_t k = 0; k < chunk.depth; ++k) {
          left_rows[k] = left[chunk.token + k];
          right_rows[k] = right[chunk.token + k];
        }
        pack<kTileRows>(a, left_rows, chunk.depth, i0, height);
        pack<kTileColumns>(b, right_rows, chunk.depth, j0, width);
        for (int64_t t = 0; t < m * n; ++t) {
          float* const sum = sums + t * tile_sums;
          kernel(tile, a + t % m * left_panel, b + t / m * right_panel, chunk.depth);
          if (!chunk.closes) {
            add(sum + partial_at, tile);
            continue;
          }
          if (!chunk.opens) {
            add(tile, sum + partial_at);
            std::fill(sum + partial_at, sum + partial_at + kTile, 0.f);
          }
          if (mode != kAbs) add_squares(sum + squares_at, tile);
          if (mode != kSquare) add(sum + total_at, tile);
        }
      }

      // Along the rows of w, whose next columns the hardware then brings by itself.
      for (int64_t u = 0; u < m * n; ++u) {
        const int64_t t = u % n * m + u / n, i = i0 + u / n * kTileRows, j = j0 + u % n * kTileColumns;
        const int64_t live = std::min(d - j, kTileColumns);
        if (live < kTileColumns || p - i < kTileRows) std::fill(tile, tile + kTile, 0.f);
        for (int64_t r = 0; r < std::min(p - i, kTileRows); ++r) {
          const float* row = widen(wide, weight + (i + r) * w_row + j, live);
          std::copy(row, row + live, tile + r * kTileColumns);
        }
        const float* const sum = sums + t * tile_sums;
        score(tile, sum + total_at, sum + squares_at, mode);
        // Beside and below the matrix stand zeros, unless an infinite gradient or input met the zeros of a panel.
        for (int64_t r = 0; live < kTileColumns && r < kTileRows; ++r)
          std::fill(tile + r * kTileColumns + live, tile + (r + 1) * kTileColumns, 0.f);
        if (p - i < kTileRows) std::fill(tile + (p - i) * kTileColumns, tile + kTile, 0.f);
        sum_tile(tile, row_partials.get() + j / kTileColumns * row_stride + i,
                 column_partials.get() + i / kTileRows * column_stride + j);
      }
    }
  });

  const auto finish = [](Tensor& out, const Buffer& partials, int64_t count, int64_t stride) {
    float* const result = out.mutable_data_ptr<float>();
    torch::stable::parallel_for(0, (out.size(0) + 63) / 64, 8, [&](int64_t lo, int64_t hi) {
      for (int64_t i = lo * 64; i < std::min(out.size(0), hi * 64); i += 64)
        add_partials(result + i, partials.get() + i, count, stride, std::min<int64_t>(64, out.size(0) - i));
    });
  };
  finish(rows, row_partials, tiles_across, row_stride);
  finish(columns, column_partials, tiles_down, column_stride);
}

// Shapes, dtypes, offsets and the mode are checked by pyprune/ops/wgrad_group_scores.py, the only caller.
void wgrad_group_scores(const Tensor& dy, const Tensor& x, const Tensor& w, std::optional<Tensor> cu_seqlens,
                        int64_t mode, Tensor rows, Tensor columns) {
  const std::vector<int64_t> offsets = read_offsets(cu_seqlens);
  switch (w.scalar_type()) {
    case ScalarType::Float:
      return scores<float>(dy, x, w, offsets, static_cast<Mode>(mode), rows, columns);
    case ScalarType::BFloat16:
      return scores<bf16>(dy, x, w, offsets, static_cast<Mode>(mode), rows, columns);
    case ScalarType::Half:
      return scores<f16>(dy, x, w, offsets, static_cast<Mode>(mode), rows, columns);
    default:
      STD_TORCH_CHECK(false, "wgrad_group_scores: w must be float32, bfloat16 or float16");
  }
}

}  // namespace
}  // namespace pyprune

STABLE_TORCH_LIBRARY_FRAGMENT(pyprune_cpp, m) {
  m.def(
      "wgrad_group_scores(Tensor dy, Tensor x, Tensor w, Tensor? cu_seqlens, int mode, Tensor(a!) rows, "
      "Tensor(b!) columns) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pyprune_cpp, CPU, m) {
  m.impl("wgrad_group_scores", TORCH_BOX(&pyprune::wgrad_group_scores));
}
