"""Questions about images of one coloured shape, as the package easy-vqa ships them, and a small BLIP that answers."""
