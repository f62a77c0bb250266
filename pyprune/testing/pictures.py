"""Small made-up images for tests, and the files that say how they become inputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

# Image processor and processor class by model type; ViT's for the others.
_PROCESSORS = {
    "clip": ("CLIPImageProcessor", "CLIPProcessor"),
    "git": ("CLIPImageProcessor", "GitProcessor"),
    "blip": ("BlipImageProcessor", "BlipProcessor"),
    "siglip": ("SiglipImageProcessor", "SiglipProcessor"),
    "vilt": ("ViltImageProcessor", "ViltProcessor"),
}


def write_pictures(folder: Path, count: int = 48, seed: int = 0) -> list[Path]:
    """Write `count` blurred random PNG files of 20 by 16 pixels, every second one in a folder below."""
    from PIL import Image

    draw = np.random.default_rng(seed)
    paths = []
    for i in range(count):
        path = folder / ("below" if i % 2 else "") / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize((20, 16)).save(path)
        paths.append(path)
    return paths


def write_processor(folder: Path, model_type: str, size: int = 12) -> None:
    """Write the `preprocessor_config.json` of a model that sees images of `size` pixels on a side."""
    images, both = _PROCESSORS.get(model_type, ("ViTImageProcessor", None))
    square = {"height": size, "width": size}
    config = {"image_processor_type": images, "size": square, "crop_size": square}
    if model_type == "vilt":
        config |= {"size": {"shortest_edge": size}, "size_divisor": 4}
    if both:
        config["processor_class"] = both
    (folder / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")
