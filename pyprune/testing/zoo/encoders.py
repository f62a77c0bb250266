"""Text encoders."""

from pyprune.testing.zoo.tiny import TOKENS, Tiny

_BERT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24, **TOKENS}
_DECODER = {"is_decoder": True, "add_cross_attention": True}
_HEADS = (
    "AutoModel",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
)

MODELS = {
    "bert": Tiny("bert", _BERT, _HEADS),
    "bert-decoder": Tiny("bert", {**_BERT, "is_decoder": True}, ("AutoModel", "AutoModelForCausalLM")),
    "bert-cross": Tiny("bert", {**_BERT, **_DECODER}, ("AutoModel", "AutoModelForCausalLM")),
    "roberta": Tiny("roberta", _BERT, _HEADS),
    "roberta-cross": Tiny("roberta", {**_BERT, **_DECODER}, ("AutoModel", "AutoModelForCausalLM")),
    "xlm-roberta": Tiny("xlm-roberta", _BERT, _HEADS),
    "electra": Tiny("electra", {**_BERT, "embedding_size": 16}, (*_HEADS, "AutoModelForPreTraining")),
    "encoder-decoder": Tiny(
        "encoder-decoder",
        {
            "encoder": {"model_type": "bert", **_BERT, "hidden_size": 24, "num_hidden_layers": 2},
            "decoder": {"model_type": "bert", **_BERT, **_DECODER, "num_hidden_layers": 2},
            "decoder_start_token_id": 0,
            "pad_token_id": 1,
        },
        ("EncoderDecoderModel",),
    ),
    "distilbert": Tiny("distilbert", {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 24, **TOKENS}, _HEADS),
}
