"""pyprune: structured pruning of Hugging Face transformers into smaller dense models that load and run faster."""

__version__ = "0.1.0"
