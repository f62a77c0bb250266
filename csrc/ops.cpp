// The library of raw CPU ops. Each is defined beside its kernel in cpu/<op>.cpp and writes to outputs that its caller
// made. The public ops, their checks and their gradients are in pyprune/ops/<op>.py and exist without this library;
// these are what its "cpp" backend calls.
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

STABLE_TORCH_LIBRARY(pyprune_cpp, m) { m.def("build_config() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(pyprune_cpp, CompositeExplicitAutograd, m) {
  m.impl("build_config", TORCH_BOX(&build_config));
}
