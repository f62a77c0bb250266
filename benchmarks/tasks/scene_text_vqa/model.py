"""A multimodal transformer of BERT layers that answers word by word, with words of its own and words that it reads.

After M4C (Hu et al., CVPR 2020) and TAP (Yang et al., CVPR 2021): question, objects, OCR tokens and the answer so far
are one sequence; the first three see each other, the answer sees them and what is before it. A step's logits are those
of a small vocabulary and a pointer's over the OCR tokens. Takes features of any width, those published for TextVQA too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, DynamicCache, GenerationMixin
from transformers.models.bert.modeling_bert import BertEncoder, BertPreTrainedModel
from transformers.utils import ModelOutput

_FREQUENCIES = 4
# Logits of OCR tokens that are not there: far below any other, and finite, so that differences of logits are too.
_ABSENT = -1e4


@dataclass
class Answer(ModelOutput):
    """`logits` `[B, S, vocabulary]`: of the token that follows each of the answer."""

    logits: torch.Tensor | None = None


def config(words: int, objects: int, ocr: int, ocr_tokens: int, steps: int = 12, **shape: Any) -> BertConfig:
    """`words` are the vocabulary's, `objects` and `ocr` the widths of the features, `ocr_tokens` the most a scene has.

    `shape` is that of the layers, as `BertConfig` calls it.
    """
    return BertConfig(
        vocab_size=words + ocr_tokens,
        words=words,
        object_features=objects,
        ocr_features=ocr,
        answer_steps=steps,
        max_position_embeddings=64,
        type_vocab_size=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **shape,
    )


class Features(nn.Module):
    """Features and boxes of objects or OCR tokens to `[B, N, d]`. Boxes enter as waves, too: near and far show."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.look, self.place = nn.Linear(features, width), nn.Linear(4 * (1 + 2 * _FREQUENCIES), width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, features: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        waves = boxes[..., None] * torch.pi * 2.0 ** torch.arange(_FREQUENCIES, device=boxes.device, dtype=boxes.dtype)
        place = torch.cat([boxes, waves.sin().flatten(-2), waves.cos().flatten(-2)], -1)
        return self.norms[0](self.look(features)) + self.norms[1](self.place(place))


class SceneTextModel(BertPreTrainedModel, GenerationMixin):
    """The whole model: it is its own base model."""

    config_class = BertConfig
    base_model_prefix = ""
    _supports_sdpa = True

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        # Of the vocabulary, then one for each place in the order of the OCR tokens.
        self.tokens = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.positions = nn.Embedding(config.max_position_embeddings, width)
        self.types = nn.Embedding(config.type_vocab_size, width)
        self.objects, self.ocr = Features(config.object_features, width), Features(config.ocr_features, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.encoder = BertEncoder(config)
        self.answer = nn.Linear(width, config.words)
        self.pointer, self.pointed = nn.Linear(width, width), nn.Linear(width, width)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens

    def forward(
        self,
        input_ids: torch.Tensor,
        objects: torch.Tensor,
        object_boxes: torch.Tensor,
        ocr: torch.Tensor,
        ocr_boxes: torch.Tensor,
        decoder_input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
    ) -> Answer:
        """Logits of every step of the answer.

        `input_ids` `[B, Q]` is the question, 0 where it is padded; `objects` `[B, O, Fo]`, `ocr` `[B, N, Fr]` come with
        boxes `[B, O or N, 4]` in [0, 1], all 0 for padding. `decoder_input_ids` `[B, S]` is the answer so far, behind
        a begin token; it is padded on the right, which no step before sees, so its mask is of no account.
        """
        prefix, read, there = self._prefix(input_ids, objects, object_boxes, ocr, ocr_boxes, attention_mask)
        hidden = torch.cat([prefix, self._steps(decoder_input_ids, read)], 1)
        mask = self._mask(there, decoder_input_ids.shape[1], hidden)
        hidden = self.encoder(hidden, attention_mask=mask).last_hidden_state
        seen, steps = hidden[:, prefix.shape[1] - ocr.shape[1] : prefix.shape[1]], hidden[:, prefix.shape[1] :]
        return Answer(logits=self._logits(steps, self.pointed(seen), there[:, -ocr.shape[1] :]))

    def _prefix(
        self,
        input_ids: torch.Tensor,
        objects: torch.Tensor,
        object_boxes: torch.Tensor,
        ocr: torch.Tensor,
        ocr_boxes: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embeddings `[B, P, d]` of question, objects and OCR tokens, those `[B, N, d]` that answers point at, and
        what of the prefix is no padding, `[B, P]` bool."""
        places = torch.arange(ocr.shape[1], device=ocr.device)
        read = self.ocr(ocr, ocr_boxes) + self.tokens(self.config.words + places)
        asked = self.tokens(input_ids) + self._positions(input_ids.shape[1])
        parts = [asked, self.objects(objects, object_boxes), read]
        real = input_ids != self.config.pad_token_id if attention_mask is None else attention_mask.bool()
        there = torch.cat([real, object_boxes[..., 2] > 0, ocr_boxes[..., 2] > 0], 1)
        return self.norm(torch.cat([part + self.types.weight[n] for n, part in enumerate(parts)], 1)), read, there

    def _steps(self, tokens: torch.Tensor, read: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Embeddings `[B, S, d]` of the answer's tokens, the first of which stands at the place `first`."""
        places = self._positions(first + tokens.shape[1])[first:]
        return self.norm(self._said(tokens, read) + places + self.types.weight[3])

    def _logits(self, steps: torch.Tensor, pointed: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """`[B, S, vocabulary]` of the states of steps and of the projected ones of OCR tokens; `there` `[B, N]`."""
        scores = self.pointer(steps) @ pointed.transpose(1, 2) / steps.shape[-1] ** 0.5
        scores = scores.masked_fill(~there[:, None], _ABSENT)
        missing = self.config.vocab_size - self.config.words - pointed.shape[1]
        return torch.cat([self.answer(steps), F.pad(scores, (0, missing), value=_ABSENT)], -1)

    def _positions(self, count: int) -> torch.Tensor:
        return self.positions.weight[:count]

    def _said(self, tokens: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        """Embeddings `[B, S, d]` of answer tokens: a word's own, or that of the OCR token that was pointed at."""
        place = tokens - self.config.words
        index = place.clamp(min=0, max=max(read.shape[1] - 1, 0))[..., None].expand(-1, -1, read.shape[-1])
        return torch.where((place >= 0)[..., None], read.gather(1, index), self.tokens(tokens))

    @staticmethod
    def _mask(there: torch.Tensor, steps: int, like: torch.Tensor) -> torch.Tensor:
        """`[B, 1, T, T]`, added to scores: all see the prefix `there` `[B, P]`, a step those before it too."""
        prefix, length = there.shape[1], there.shape[1] + steps
        allowed = torch.ones(length, length, dtype=torch.bool, device=there.device).tril()
        allowed[:prefix] = torch.arange(length, device=there.device) < prefix
        allowed[prefix:, :prefix] = True
        keys = F.pad(there, (0, steps), value=True)
        bias = torch.zeros(len(there), 1, length, length, dtype=like.dtype, device=like.device)
        return bias.masked_fill(~(allowed & keys[:, None, None]), torch.finfo(like.dtype).min)

    @torch.no_grad()
    def generate(self, input_ids: torch.Tensor, max_new_tokens: int | None = None, **inputs: Any) -> Any:
        """Greedy answers `[B, 1 + S]` behind the begin token, padded behind the end token; at most 12 steps.

        With `return_dict_in_generate` as `sequences`, beside the `logits` of every step. The prefix never sees the
        answer, so it runs once, with the first step; each other step is a row of its own beside cached keys and values.
        """
        names = ("objects", "object_boxes", "ocr", "ocr_boxes", "attention_mask")
        prefix, read, there = self._prefix(input_ids, *(inputs.get(name) for name in names))
        limit = min(max_new_tokens or self.config.answer_steps, self.config.answer_steps)
        tokens = torch.full((len(input_ids), 1 + limit), self.config.pad_token_id, device=input_ids.device)
        tokens[:, 0] = self.config.bos_token_id
        ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        cache, logits = DynamicCache(), []
        for step in range(limit):
            rows = self._steps(tokens[:, step : step + 1], read, step)
            rows = torch.cat([prefix, rows], 1) if step == 0 else rows
            mask = self._mask(there, step + 1, rows)[:, :, -rows.shape[1] :]
            hidden = self.encoder(rows, attention_mask=mask, past_key_values=cache).last_hidden_state
            if step == 0:
                pointed = self.pointed(hidden[:, prefix.shape[1] - read.shape[1] : prefix.shape[1]])
            logits.append(self._logits(hidden[:, -1:], pointed, there[:, -read.shape[1] :])[:, 0])
            tokens[:, step + 1] = logits[-1].argmax(-1).masked_fill(ended, self.config.pad_token_id)
            ended |= tokens[:, step + 1] == self.config.eos_token_id
            if ended.all():
                break
        tokens = tokens[:, : len(logits) + 1]
        if inputs.get("return_dict_in_generate"):
            return ModelOutput(sequences=tokens, logits=tuple(logits))
        return tokens
