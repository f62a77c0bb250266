// Schemas of the raw CPU ops. The public ops, their checks and their gradients are defined in pyprune/ops/<op>.py,
// which exist without this library; these are what its "cpp" backend calls.
#include <torch/csrc/stable/library.h>

#include <string>

namespace {

std::string build_config() {
  return "compiler=" __VERSION__
#ifdef __AVX512F__
         " baseline=avx512"
#endif
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
         " clones=avx512f,haswell,default"
#endif
      ;
}

}  // namespace

STABLE_TORCH_LIBRARY(pyprune_cpp, m) {
  m.def("build_config() -> str");
  m.def("blocksum_(Tensor left, Tensor right, int group, Tensor(a!) out) -> ()");
  m.def("rearrange(Tensor gram, Tensor order, Tensor dots, int keep) -> Tensor");
  m.def("prod_reduce(Tensor x, Tensor y, Tensor? cu_seqlens, int group, int mod_group) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pyprune_cpp, CompositeExplicitAutograd, m) {
  m.impl("build_config", TORCH_BOX(&build_config));
}
