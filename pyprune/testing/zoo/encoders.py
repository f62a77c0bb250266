"""Text encoders."""

from pyprune.testing.zoo.tiny import TOKENS, Tiny

_BERT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24, **TOKENS}
_DECODER = {"is_decoder": True, "add_cross_attention": True}
_RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
_BUCKETS = {"position_buckets": 5, "norm_rel_ebd": "layer_norm"}
_CONVOLUTION = {"relative_attention": True, "pos_att_type": ["p2c"], "conv_kernel_size": 3, "type_vocab_size": 2}
_MODERN = {**_BERT, "cls_token_id": 0, "sep_token_id": 2, "local_attention": 6}
_BIASED = {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_pooling": "mean"}
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
    "camembert": Tiny("camembert", _BERT),
    "data2vec-text": Tiny("data2vec-text", _BERT),
    "ernie": Tiny("ernie", {**_BERT, "use_task_id": True}),
    "electra": Tiny("electra", {**_BERT, "embedding_size": 16}, (*_HEADS, "AutoModelForPreTraining")),
    "deberta-v2": Tiny("deberta-v2", _BERT, _HEADS),
    "deberta-v2-relative": Tiny("deberta-v2", {**_BERT, **_RELATIVE, **_BUCKETS}, _HEADS),
    "deberta-v2-shared": Tiny("deberta-v2", {**_BERT, **_RELATIVE, "share_att_key": True}),
    "deberta-v2-convolution": Tiny("deberta-v2", {**_BERT, **_CONVOLUTION}),
    "modernbert": Tiny("modernbert", _MODERN, _HEADS),
    "modernbert-biased": Tiny("modernbert", {**_MODERN, **_BIASED}, _HEADS),
    "modernbert-decoder": Tiny(
        "modernbert-decoder", _MODERN, ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    ),
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
