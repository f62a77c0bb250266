"""For writers of adapters and kernels: tiny models, samples, numerics. Used by tests and benchmarks only."""
