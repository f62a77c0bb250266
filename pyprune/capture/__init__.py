"""Running data through a model: taps, masks, cotangents, block-by-block replay."""
