"""Models that see images and read text, and their members alone."""

from pyprune.testing.zoo.tiny import TOKENS, Tiny

_TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24, **TOKENS}
_IMAGE = {"image_size": 12, "patch_size": 4}
_VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    **_IMAGE,
}
_BOTH = {"text_config": _TEXT, "vision_config": _VISION}
_SIGLIP = {"text_config": {**_TEXT, "projection_size": 24}, "vision_config": _VISION}
_VILT_HEADS = (
    "ViltForMaskedLM",
    "ViltForQuestionAnswering",
    "ViltForImageAndTextRetrieval",
    "ViltForImagesAndTextClassification",
    "ViltForTokenClassification",
)
_BLIP_TEXT = {**_TEXT, "sep_token_id": 2}
_BLIP = {"text_config": _BLIP_TEXT, "vision_config": {**_VISION, "hidden_size": 32, "num_attention_heads": 4}}
_BLIP_TEXT_HEADS = ("BlipTextModel", "BlipTextLMHeadModel")
_BLIP_HEADS = ("BlipForImageTextRetrieval", "AutoModel", "AutoModelForVisualQuestionAnswering")
_VIT = {"model_type": "vit", **_VISION}
_CROSS = {"is_decoder": True, "add_cross_attention": True}
_BERT = {"model_type": "bert", **_TEXT, **_CROSS}
_GPT2 = {"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 3, "n_inner": 20, **TOKENS, **_CROSS}
_PAIR, _START = "vision-encoder-decoder", {"decoder_start_token_id": 0, "pad_token_id": 1}

MODELS = {
    "clip": Tiny("clip", {**_BOTH, "projection_dim": 16}, ("AutoModel", "CLIPForImageClassification")),
    "clip-text": Tiny("clip_text_model", _TEXT, ("CLIPTextModel", "CLIPTextModelWithProjection")),
    "clip-vision": Tiny("clip_vision_model", _VISION, ("CLIPVisionModel", "CLIPVisionModelWithProjection")),
    "siglip": Tiny("siglip", _SIGLIP, ("AutoModel", "AutoModelForImageClassification")),
    "siglip-text": Tiny("siglip_text_model", _TEXT, ("SiglipTextModel",)),
    "siglip-vision": Tiny("siglip_vision_model", _VISION, ("SiglipVisionModel",)),
    "siglip-headless": Tiny("siglip_vision_model", {**_VISION, "vision_use_head": False}, ("SiglipVisionModel",)),
    "git-vision": Tiny("git_vision_model", _VISION, ("GitVisionModel",)),
    "git": Tiny("git", {**_TEXT, "vision_config": _VISION}, ("AutoModel", "GitForCausalLM")),
    "vilt": Tiny("vilt", {**_TEXT, **_IMAGE, "num_images": 1}, ("AutoModel", *_VILT_HEADS)),
    "vilt-short": Tiny("vilt", {**_TEXT, **_IMAGE, "qkv_bias": False, "max_image_length": 5}),
    "blip": Tiny("blip", {**_BLIP, "projection_dim": 16, "image_text_hidden_size": 16}, _BLIP_HEADS),
    "blip-caption": Tiny("blip", {**_BOTH, "text_config": _BLIP_TEXT}, ("BlipForConditionalGeneration",)),
    "blip-text": Tiny("blip_text_model", {**_BLIP_TEXT, "encoder_hidden_size": 24}, _BLIP_TEXT_HEADS),
    "blip-vision": Tiny("blip_vision_model", _VISION, ("BlipVisionModel",)),
    "vit-gpt2": Tiny(_PAIR, {"encoder": _VIT, "decoder": _GPT2, **_START}, ("VisionEncoderDecoderModel",)),
    "vit-bert": Tiny(_PAIR, {"encoder": _VIT, "decoder": _BERT, **_START}, ("AutoModelForImageTextToText",)),
}
