"""Encoder-decoders."""

from pyprune.testing.zoo.tiny import TOKENS, Tiny

_BART = {
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 20,
    **TOKENS,
}
_T5 = {
    "vocab_size": 99,
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 24,
    "num_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 9,
    "decoder_start_token_id": 0,
}
_T5_HEADS = (
    "AutoModel",
    "AutoModelForSeq2SeqLM",
    "T5EncoderModel",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
)
_WHISPER = {
    **_BART,
    "num_mel_bins": 5,
    "max_source_positions": 14,
    "max_target_positions": 40,
    "decoder_start_token_id": 3,
    "classifier_proj_size": 16,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
_PIX2STRUCT = {
    "text_config": {
        "vocab_size": 99,
        "hidden_size": 32,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 3,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 9,
    },
    "vision_config": {
        "hidden_size": 32,
        "patch_embed_hidden_size": 12,
        "d_kv": 12,
        "d_ff": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "seq_len": 40,
    },
}
# Only the whole gives its text model this value, without which it cannot be initialised.
_TEXT = {**_PIX2STRUCT["text_config"], "initializer_range": 0.02}
_WHISPER_HEADS = ("AutoModel", "AutoModelForSpeechSeq2Seq", "AutoModelForCausalLM", "AutoModelForAudioClassification")

MODELS = {
    "bart": Tiny(
        "bart",
        _BART,
        (
            "AutoModel",
            "AutoModelForSeq2SeqLM",
            "AutoModelForCausalLM",
            "AutoModelForSequenceClassification",
            "AutoModelForQuestionAnswering",
        ),
    ),
    "t5": Tiny("t5", _T5, _T5_HEADS),
    "t5-gated": Tiny("t5", {**_T5, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 2}, _T5_HEADS[:2]),
    "whisper": Tiny("whisper", _WHISPER, _WHISPER_HEADS),
    "pix2struct": Tiny("pix2struct", _PIX2STRUCT, ("AutoModelForImageTextToText",)),
    "pix2struct-vision": Tiny("pix2struct_vision_model", _PIX2STRUCT["vision_config"], ("Pix2StructVisionModel",)),
    "pix2struct-text": Tiny("pix2struct_text_model", _TEXT, ("Pix2StructTextModel",)),
}
