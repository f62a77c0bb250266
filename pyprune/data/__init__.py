"""Calibration and held-out data: reading, tokenising, batching by length."""
