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
}
