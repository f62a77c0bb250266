"""What runs behind the last layer, and nothing else."""

import pytest

from pyprune.core.batches import Samples
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.recovery.output_heads import output_heads
from pyprune.testing.models import tiny_model

HEADS = {
    ("bert", "AutoModelForSequenceClassification"): {
        *("bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"),
    },
    ("llama", "AutoModelForCausalLM"): {"model.norm.weight", "lm_head.weight"},
    ("t5", "AutoModelForSeq2SeqLM"): {
        *("decoder.final_layer_norm.weight", "lm_head.weight"),
        *("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),  # tied to the head
    },
    ("vit", "AutoModelForImageClassification"): {
        *("vit.layernorm.weight", "vit.layernorm.bias", "classifier.weight", "classifier.bias"),
    },
    # Of two towers the heads of the one that runs last, and what belongs to the whole.
    ("clip", "AutoModel"): {
        *("text_model.final_layer_norm.weight", "text_model.final_layer_norm.bias"),
        *("text_projection.weight", "logit_scale"),
    },
}


@pytest.mark.parametrize(("variant", "head"), HEADS)
def test_heads(variant, head):
    model = tiny_model(variant, head)
    made = example_inputs(model, 1, 4)
    batch = Samples([{name: tensor[0] for name, tensor in made.items()}]).collate([0])
    found = {id(p) for p in output_heads(model, adapter_for(model).anatomy(model), batch)}
    names = {name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in found}
    assert names == HEADS[variant, head]
