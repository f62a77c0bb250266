"""Text encoders."""

from pyprune.testing.zoo.tiny import TOKENS, Tiny

_BERT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24, **TOKENS}
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
    "roberta": Tiny("roberta", _BERT, _HEADS),
    "distilbert": Tiny("distilbert", {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 24, **TOKENS}, _HEADS),
}
