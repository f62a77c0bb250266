"""Model families: the only place that knows transformers' modelling code."""
