"""Batches by length: every sample once, padding on the right and within bounds, labels beside their samples."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyprune.core.batches import Samples, batching
from pyprune.core.errors import InputError


def samples_of(lengths, labels=None, **kwargs):
    inputs = [{"input_ids": torch.arange(n) + 100 * s} for s, n in enumerate(lengths)]
    return Samples(inputs, labels, {"input_ids": 7}, **kwargs)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(1, 64), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_every_sample_travels_once_within_bounds(lengths, max_tokens, max_padding):
    samples = samples_of(lengths)
    batches = samples.batches(max_tokens, max_padding)
    assert sorted(torch.cat([b.index for b in batches]).tolist()) == list(range(len(lengths)))
    widths = []
    for batch in batches:
        ids, width = batch.inputs["input_ids"], int(batch.lengths.max())
        widths.append(width)
        assert ids.shape == (len(batch.index), width)
        assert ids.numel() <= max_tokens or len(batch.index) == 1
        padding = ids.numel() - int(batch.lengths.sum())
        assert padding <= max_padding * ids.numel()
        assert ("attention_mask" in batch.inputs) == (padding > 0)
        if padding:
            assert torch.equal(batch.inputs["attention_mask"], batch.token_mask.long())
        assert (ids[~batch.token_mask] == 7).all()
        for row, s, real in zip(ids, batch.index.tolist(), batch.token_mask, strict=True):
            assert torch.equal(row[real], samples.inputs[s]["input_ids"])
    assert widths == sorted(widths, reverse=True)


def test_batches_are_filled():
    assert [len(b.index) for b in samples_of([4] * 10).batches(max_tokens=16)] == [4, 4, 2]
    assert [b.lengths.tolist() for b in samples_of([5, 2, 5, 4]).batches(64, max_padding=0.1)] == [[5, 5, 4], [2]]


def test_a_sample_longer_than_the_limit_travels_alone():
    assert [b.index.tolist() for b in samples_of([3, 50, 3]).batches(max_tokens=8)] == [[1], [0, 2]]


def test_all_inputs_are_padded():
    inputs = [{"input_ids": torch.ones(n, dtype=torch.int64), "token_type_ids": torch.ones(n).long()} for n in (3, 2)]
    (batch,) = Samples(inputs, None, {"input_ids": 5}).batches(64, 1.0)
    assert batch.inputs["input_ids"].tolist() == [[1, 1, 1], [1, 1, 5]]
    assert batch.inputs["token_type_ids"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_the_models_own_padding_token_goes_first():
    model = torch.nn.Linear(1, 1)
    assert batching(model)["pad"] is None
    model.config = SimpleNamespace(pad_token_id=5)
    (batch,) = samples_of([3, 2]).batches(**{**batching(model), "max_padding": 1.0})
    assert batch.inputs["input_ids"].tolist() == [[0, 1, 2], [100, 101, 5]]


def one_batch(lengths, labels):
    (batch,) = samples_of(lengths, labels).batches(1000, 1.0)
    return batch


def test_labels_of_samples():
    batch = one_batch([2, 5, 3], [torch.tensor(s) for s in (10, 11, 12)])
    assert batch.index.tolist() == [1, 2, 0]
    assert batch.labels.tolist() == [11, 12, 10]


def test_labels_of_tokens_are_padded_with_minus_100():
    batch = one_batch([2, 3], [torch.tensor([1, 2]), torch.tensor([3, 4, 5])])
    assert batch.labels.tolist() == [[3, 4, 5], [1, 2, -100]]


@pytest.mark.parametrize("labels", [[[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]], [[4, 6], [0, 1], [2, 2]]])
def test_vector_labels_stay_as_they_are(labels):
    # One row of labels is as long as the second sample: still no labels of tokens.
    batch = one_batch([7, 2, 5], [torch.tensor(row) for row in labels])
    assert batch.labels.tolist() == [labels[0], labels[2], labels[1]]


def test_moving_keeps_the_index_where_rows_are_gathered():
    batch = one_batch([2, 3], None).to("meta")
    assert {t.device.type for t in (*batch.inputs.values(), batch.lengths)} == {"meta"}
    assert batch.index.device.type == "cpu"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: samples_of([]), "no samples"),
        (lambda: samples_of([3, 0]), "a sample has no tokens"),
        (lambda: samples_of([3, 2], [torch.tensor(1)]), "2 samples but 1 labels"),
        (lambda: samples_of([3, 2], []), "2 samples but 0 labels"),
        (lambda: samples_of([3, 2], [torch.tensor(1), torch.tensor([1, 2])]), "labels must be"),
        (lambda: samples_of([3, 2], [torch.tensor([1, 2, 3]), torch.tensor([1])]), "labels must be"),
        (lambda: Samples([{"input_ids": torch.ones(1)}, {"token_type_ids": torch.ones(1)}]), "differ in their inputs"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(InputError, match=message):
        make()


def images(count, size=4, text=()):
    rows = [{"pixel_values": torch.full((3, size, size), float(s))} for s in range(count)]
    for row, length in zip(rows, text, strict=False):
        row["input_ids"] = torch.arange(length)
    return rows


def test_images_are_stacked_and_bounded_by_their_numbers():
    samples = Samples(images(5), tokens=17)
    assert samples.lengths.tolist() == [17] * 5
    batches = samples.batches(max_tokens=1, max_values=2 * 48)
    assert [len(batch.index) for batch in batches] == [2, 2, 1]
    for batch in batches:
        assert batch.inputs.keys() == {"pixel_values"}
        assert torch.equal(batch.inputs["pixel_values"][:, 0, 0, 0], batch.index.float())
        assert batch.token_mask.shape == (len(batch.index), 17)
        assert batch.token_mask.all()
        assert batch.padding(17) is None
    assert samples.first(2).lengths.tolist() == [17, 17]


def test_text_beside_images_is_never_padded_where_blocks_are_looked_at():
    samples = Samples(images(4, text=(3, 5, 3, 5)))
    batches = samples.batches(max_padding=1.0)
    assert [batch.index.tolist() for batch in batches] == [[1, 3], [0, 2]]
    assert samples.lengths.tolist() == [3, 5, 3, 5]
    assert all("attention_mask" not in batch.inputs for batch in batches)


def test_samples_with_two_texts_travel_by_both_lengths():
    rows = [{"input_ids": torch.ones(n).long(), "decoder_input_ids": torch.ones(m).long()} for n, m in ((4, 2), (4, 3))]
    assert [batch.index.tolist() for batch in Samples(rows).batches(max_padding=1.0)] == [[0], [1]]


def test_collating_pads_every_text_with_its_own_mask():
    rows = images(2, text=(3, 5))
    for row, length in zip(rows, (4, 2), strict=True):
        row["decoder_input_ids"] = torch.arange(length)
    batch = Samples(rows, None, {"decoder_input_ids": 9}).collate([0, 1], pad=8)
    assert batch.inputs["input_ids"].tolist() == [[0, 1, 2, 8, 8], [0, 1, 2, 3, 4]]
    assert batch.inputs["decoder_input_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 8, 8]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.inputs["decoder_attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    # Outputs are the decoder's; tokens of another number, as the image's, are real.
    assert batch.mask(4).sum(1).tolist() == [4, 2]
    assert batch.padding(10) is None
    assert batch.real(torch.zeros(2, 10, 6)).shape == (20, 6)


def test_images_of_several_sizes_make_no_batch():
    samples = Samples([*images(1), *images(1, size=5)])
    assert [len(batch.index) for batch in samples.batches()] == [1, 1]
    with pytest.raises(InputError, match=r"pixel_values of samples in one batch differ in shape: \[\[3, 4, 4\]"):
        samples.collate([0, 1])


def test_moving_to_a_model_casts_what_is_no_whole_number():
    (batch,) = Samples(images(2, text=(3, 3))).batches()
    moved = batch.on(torch.nn.Linear(1, 1, dtype=torch.bfloat16))
    assert {name: t.dtype for name, t in moved.inputs.items()} == {
        "pixel_values": torch.bfloat16,
        "input_ids": torch.int64,
    }
