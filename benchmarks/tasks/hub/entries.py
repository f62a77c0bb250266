"""The protocol of every data set: one entry says what is read, which model answers, and how it is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Source:
    """A split of a data set on the hub. `split` with a slash in it is a pattern of its files.

    `revision` is a branch other than `main`: data sets that come as a script are read as the hub has converted them.
    """

    dataset: str
    split: str
    config: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Entry:
    """One task.

    - `kind`: the class in `kinds.py` that reads and measures it; `metric`: the figure that the papers report;
    - `model`: the checkpoint that is pruned; None: there is none that everyone uses, and `--model` has to name one;
    - `train` is calibrated and retrained on, `test` is what the figure is of;
    - `columns`: what the kind calls a column, and what the data set does;
    - `length`: tokens to which texts are cut, or of a block; `generation`: settings of `generate`;
    - `samples`: how many of `test` the papers take, None: all;
    - `options`: whatever else the kind asks for;
    - `held_out`: the data set has one split with answers. A tenth of it, by the hash of this column, is `test`.
    """

    kind: str
    metric: str
    model: str | None
    train: Source
    test: Source
    columns: Mapping[str, str]
    length: int = 0
    generation: Mapping[str, Any] = field(default_factory=dict)
    samples: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    held_out: str | None = None


def _splits(dataset: str, train: str, test: str, **where: Any) -> dict[str, Source]:
    return {"train": Source(dataset, train, **where), "test": Source(dataset, test, **where)}


def _glue(config: str, texts: tuple[str, ...], metric: str = "accuracy", test: str = "validation") -> Entry:
    """Kwon et al. 2022, VTrans, OPTIN: BERT-base, at most 128 tokens; test labels are secret, so dev is the test."""
    return Entry(
        kind="text classification",
        metric=metric,
        model=f"yoshitomo-matsubara/bert-base-uncased-{config}",
        **_splits("nyu-mll/glue", "train", test, config=config),
        columns={**dict(zip(("text", "pair"), texts, strict=False)), "label": "label"},
        length=128,
    )


def _squad(dataset: str, model: str, null: bool) -> Entry:
    """Windows of 384 tokens, 128 apart from the last one's end, answers of at most 30 tokens (Kwon et al. 2022)."""
    return Entry(
        kind="span answers",
        metric="F1",
        model=model,
        **_splits(dataset, "train", "validation"),
        columns={"id": "id", "question": "question", "context": "context", "answers": "answers"},
        length=384,
        options={"stride": 128, "longest": 30, "null": null},
    )


_VQA = {"image": "image", "question": "question", "answers": "answers"}
_SENTENCES = ("sentence1", "sentence2")
_IMAGE = {"image": "image", "label": "label"}

ENTRIES: dict[str, Entry] = {
    "cola": _glue("cola", ("sentence",), "Matthews correlation"),
    "mnli": _glue("mnli", ("premise", "hypothesis"), test="validation_matched"),
    "mrpc": _glue("mrpc", _SENTENCES),
    "qnli": _glue("qnli", ("question", "sentence")),
    "qqp": _glue("qqp", ("question1", "question2")),
    "rte": _glue("rte", _SENTENCES),
    "sst2": _glue("sst2", ("sentence",)),
    "stsb": _glue("stsb", _SENTENCES, "Spearman correlation"),
    "squad": _squad("rajpurkar/squad", "csarron/bert-base-uncased-squad-v1", null=False),
    "squad_v2": _squad("rajpurkar/squad_v2", "twmkn9/bert-base-uncased-squad2", null=True),
    # T5's own checkpoints were trained on both, with these words before the inputs.
    "t5_sst2": Entry(
        kind="text to text",
        metric="exact match",
        model="google-t5/t5-base",
        **_splits("nyu-mll/glue", "train", "validation", config="sst2"),
        columns={"text": "sentence", "label": "label"},
        length=512,
        generation={"max_new_tokens": 8},
        options={"template": "sst2 sentence: {text}", "words": ("negative", "positive")},
    ),
    "t5_squad": Entry(
        kind="text to text",
        metric="F1",
        model="google-t5/t5-base",
        **_splits("rajpurkar/squad", "train", "validation"),
        columns={"question": "question", "context": "context", "answers": "answers"},
        length=512,
        generation={"max_new_tokens": 32},
        options={"template": "question: {question} context: {context}"},
    ),
    # SparseGPT's protocol, which FLAP, Wanda and TVA-Prune follow: texts joined, blocks of 2,048 tokens side by side.
    "wikitext": Entry(
        kind="language model",
        metric="perplexity",
        model="huggyllama/llama-7b",
        **_splits("Salesforce/wikitext", "train", "test", config="wikitext-2-raw-v1"),
        columns={"text": "text"},
        length=2048,
        options={"between": "\n\n"},
    ),
    "c4": Entry(
        kind="language model",
        metric="perplexity",
        model="huggyllama/llama-7b",
        **_splits("allenai/c4", "en/c4-train.00000-of-01024.json.gz", "en/c4-validation.00000-of-00008.json.gz"),
        columns={"text": "text"},
        length=2048,
        samples=256,
        options={"between": " "},
    ),
    "imagenet": Entry(
        kind="image classification",
        metric="accuracy",
        model="facebook/deit-small-patch16-224",
        **_splits("ILSVRC/imagenet-1k", "train", "validation"),
        columns=_IMAGE,
    ),
    "mini_imagenet": Entry(
        kind="image classification",
        metric="accuracy",
        model=None,
        **_splits("timm/mini-imagenet", "train", "test"),
        columns=_IMAGE,
    ),
    "cifar10": Entry(
        kind="image classification",
        metric="accuracy",
        model="nateraw/vit-base-patch16-224-cifar10",
        **_splits("uoft-cs/cifar10", "train", "test"),
        columns={"image": "img", "label": "label"},
    ),
    # Single scale, as the model's own processor resizes. Class 0 is what is not annotated.
    "ade20k": Entry(
        kind="segmentation",
        metric="mean IoU",
        model="nvidia/segformer-b0-finetuned-ade-512-512",
        **_splits(
            "zhoubolei/scene_parse_150",
            "scene_parsing/train/*.parquet",
            "scene_parsing/validation/*.parquet",
            revision="refs/convert/parquet",
        ),
        columns={"image": "image", "annotation": "annotation"},
    ),
    # LFPR's data. Its models (TAP, M4C) read OCR tokens and are not on the hub; GIT reads pixels.
    "textvqa": Entry(
        kind="visual questions",
        metric="VQA accuracy",
        model="microsoft/git-base-textvqa",
        **_splits("lmms-lab/textvqa", "train", "validation"),
        columns=_VQA,
        length=40,
        generation={"max_new_tokens": 20},
    ),
    # The paper's validation split is its own; answers of the official test split are secret.
    "st_vqa": Entry(
        kind="visual questions",
        metric="accuracy",
        model="microsoft/git-base-textvqa",
        **_splits("danjacobellis/stvqa_task1", "train", "train"),
        columns={"image": "image", "question": "question", "answers": "answer", "name": "path"},
        length=40,
        generation={"max_new_tokens": 20},
        held_out="name",
    ),
    # BLIP's settings of generation; its paper ranks 3,128 answers instead.
    "vqav2": Entry(
        kind="visual questions",
        metric="VQA accuracy",
        model="Salesforce/blip-vqa-base",
        train=Source("Multimodal-Fatima/VQAv2_train", "train"),
        test=Source("lmms-lab/VQAv2", "validation"),
        columns=_VQA,
        length=35,
        generation={"num_beams": 3, "min_length": 1, "max_length": 10},
    ),
    # Labels of the train split are not in the data set: dev calibrates, and test-P is measured.
    "nlvr2": Entry(
        kind="image pairs",
        metric="accuracy",
        model="dandelin/vilt-b32-finetuned-nlvr2",
        **_splits("lmms-lab/NLVR2", "balanced_dev", "balanced_test_public"),
        columns={"left": "left_image", "right": "right_image", "text": "question", "label": "answer"},
        length=40,
    ),
    # Karpathy's split and BLIP's beams (UPop), without BLIP's prompt.
    "coco": Entry(
        kind="captions",
        metric="CIDEr-D",
        model="Salesforce/blip-image-captioning-base",
        train=Source("Multimodal-Fatima/COCO_captions_train", "train"),
        test=Source("Multimodal-Fatima/COCO_captions_test", "test"),
        columns={"image": "image", "captions": "sentences_raw"},
        generation={"num_beams": 3, "min_length": 5, "max_length": 20},
    ),
    # Karpathy's split. UPop's CLIP is fine-tuned on it, this one is not.
    "flickr30k": Entry(
        kind="retrieval",
        metric="mean recall@1",
        model="openai/clip-vit-large-patch14-336",
        **_splits("umaru97/flickr30k_train_val_test", "train", "test"),
        columns={"image": "image", "captions": "caption"},
        length=77,
    ),
}
