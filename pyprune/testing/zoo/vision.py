"""Encoders of images."""

from pyprune.testing.zoo.tiny import Tiny

_IMAGE = {"image_size": 12, "patch_size": 4}
_VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24, **_IMAGE}
_DINOV2 = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "mlp_ratio": 1, **_IMAGE}
_SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_SEGFORMER = {
    "num_encoder_blocks": 2,
    "depths": [2, 2],
    "sr_ratios": [2, 1],
    "hidden_sizes": [16, 32],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "num_attention_heads": [2, 4],
    "mlp_ratios": [2, 1],
    "decoder_hidden_size": 16,
    "image_size": [36, 28],
}
_MASK2FORMER = {
    "backbone_config": {
        "model_type": "swin",
        "image_size": 64,
        "embed_dim": 8,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 2, 4],
        "window_size": 2,
        "mlp_ratio": 1.0,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
    "feature_size": 32,
    "mask_feature_size": 8,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 24,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "num_attention_heads": 4,
    "dim_feedforward": 24,
    "num_queries": 5,
}
_SEGMENTERS = ("AutoModel", "AutoModelForImageClassification", "AutoModelForSemanticSegmentation")
_HEADS = ("AutoModel", "AutoModelForImageClassification", "AutoModelForMaskedImageModeling")
_DEIT_HEADS = (_HEADS[0], _HEADS[2], "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher")
_BACKBONES = (*_HEADS[:2], "AutoBackbone")
_BACKBONE = {"out_features": ["stage1", "stage3"]}

MODELS = {
    "vit": Tiny("vit", {**_VIT, "encoder_stride": 4}, _HEADS),
    "vit-oblong": Tiny("vit", {**_VIT, "image_size": [12, 8], "qkv_bias": False, "head_dim": 12}),
    "deit": Tiny("deit", {**_VIT, "encoder_stride": 4}, _DEIT_HEADS),
    "dinov2": Tiny("dinov2", {**_DINOV2, **_BACKBONE}, _BACKBONES),
    "dinov2-swiglu": Tiny("dinov2", {**_DINOV2, "use_swiglu_ffn": True, "qkv_bias": False}, _HEADS[:2]),
    "swin": Tiny("swin", {**_SWIN, "mlp_ratio": 1.5, "encoder_stride": 4}, _HEADS),
    "swin-padded": Tiny(
        "swin",
        {**_SWIN, "image_size": 20, "window_size": 3, "qkv_bias": False, "out_features": ["stage1", "stage2"]},
        _BACKBONES,
    ),
    "segformer": Tiny("segformer", _SEGFORMER, _SEGMENTERS),
    "mask2former": Tiny("mask2former", _MASK2FORMER, ("AutoModel", "AutoModelForUniversalSegmentation")),
    "mask2former-pre-norm": Tiny("mask2former", {**_MASK2FORMER, "pre_norm": True}),
}
