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
}
