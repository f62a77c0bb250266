"""Real tasks on which pruning is measured: one package each, with data of a fixed split and a dense model."""
