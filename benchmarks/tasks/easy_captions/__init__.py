"""Captions of the images of the package easy-vqa, written word by word by a small GIT."""
