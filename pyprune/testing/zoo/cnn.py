"""Convolutional networks."""

from pyprune.testing.zoo.tiny import Tiny

_RESNET = {"embedding_size": 6, "hidden_sizes": [8, 16], "depths": [2, 2], "image_size": 42, "num_labels": 3}
_CONVNEXT = {"hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2, "image_size": 26, "num_labels": 3}
_HEADS = ("AutoModelForImageClassification", "AutoModel", "AutoBackbone")

MODELS = {
    "resnet": Tiny("resnet", {**_RESNET, "out_features": ["stage1", "stage2"]}, _HEADS),
    "resnet-basic": Tiny("resnet", {**_RESNET, "layer_type": "basic", "downsample_in_first_stage": True}),
    "resnet-early": Tiny("resnet", {**_RESNET, "downsample_in_bottleneck": True, "image_size": [42, 36]}),
    "convnext": Tiny("convnext", {**_CONVNEXT, "out_features": ["stage1", "stage2"]}, _HEADS),
    "convnext-unscaled": Tiny("convnext", {**_CONVNEXT, "layer_scale_init_value": 0.0}),
}
