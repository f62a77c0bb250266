"""How many tokens an image becomes, by a model's config."""

from __future__ import annotations

from typing import Any


def pair(size: Any) -> tuple[int, int]:
    """Height and width of what a config gives as one number or as two."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def image_size(config: Any, usual: int) -> tuple[int, int]:
    """Height and width of images; `usual`, what the family's processor makes, where the config gives none.

    Families that take images of any size know no such attribute, but their configs keep it once it is set.
    """
    return pair(getattr(config, "image_size", None) or usual)


def patch_grid(config: Any) -> tuple[int, int]:
    """Rows and columns of whole patches in an image of the config's size."""
    (height, width), (rows, columns) = pair(config.image_size), pair(config.patch_size)
    return height // rows, width // columns


def patches(config: Any) -> int:
    """Whole patches in an image of the config's size."""
    rows, columns = patch_grid(config)
    return rows * columns
