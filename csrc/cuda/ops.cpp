// Schemas of the raw CUDA ops: what the "cuda" backend of pyprune/ops/<op>.py calls.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(pyprune_cuda, m) {
  m.def("prod_reduce(Tensor x, Tensor y, Tensor? cu_seqlens, int group, int mod_group) -> Tensor");
}
