"""Measuring: interleaved timing, result rows, latency of models."""
