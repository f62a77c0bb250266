"""Rows of images, sound, text and tensors: what they become, and what cannot be read."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pyprune.core.errors import InputError
from pyprune.data.files import json_rows
from pyprune.data.rows import Reader, gathered, image_files
from pyprune.testing.pictures import write_pictures

BOTH = frozenset({"input_ids", "pixel_values", "attention_mask"})


def seeing(images, return_tensors):
    """A processor of images alone: their mean colour, as an image of one pixel."""
    return {"pixel_values": torch.tensor(np.asarray(images)).float().mean((0, 1)).view(1, 3, 1, 1)}


def reader(takes=BOTH, tokenizer=None, processor=seeing, length=16, **kwargs):
    return Reader(frozenset(takes), tokenizer, lambda: processor, length, **kwargs)


def shapes(samples):
    return [{name: tuple(t.shape) for name, t in inputs.items()} for inputs, _ in samples]


def test_a_folder_is_read_to_the_bottom_and_broken_files_are_left_out(tmp_path):
    paths = write_pictures(tmp_path, 5)
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image either")
    torn = tmp_path / "below" / "torn.JPG"
    Image.new("RGB", (64, 64)).save(torn, "JPEG")
    torn.write_bytes(torn.read_bytes()[:300])
    read = reader({"pixel_values"})
    samples = read.samples(image_files(tmp_path))
    assert shapes(samples) == [{"pixel_values": (3, 1, 1)}] * len(paths)
    assert {Path(name).name for name in read.skipped} == {"broken.png", "torn.JPG"}


def test_only_as_many_images_are_opened_as_asked_for(tmp_path):
    write_pictures(tmp_path, 6)
    (tmp_path / "zzz.png").write_bytes(b"")
    read = reader({"pixel_values"})
    assert len(read.samples(image_files(tmp_path), at_most=3)) == 3
    assert read.skipped == []


def test_nothing_readable_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds no images"):
        image_files(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"no sample could be read: .*a\.png"):
        reader().samples(image_files(tmp_path))


def test_rows_of_a_file_name_images_from_where_it_is(tmp_path, tokenizer):
    paths = write_pictures(tmp_path / "pictures", 2)
    path = tmp_path / "rows.jsonl"
    lines = [{"image": str(p.relative_to(tmp_path)), "question": "a b", "label": 1} for p in paths]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    samples = reader(tokenizer=tokenizer).samples(json_rows(path).values(), folder=tmp_path)
    assert shapes(samples) == [{"pixel_values": (3, 1, 1), "input_ids": (4,)}] * 2
    assert gathered(samples).labels[0].item() == 1


def test_columns_that_the_model_does_not_take_are_not_read(tokenizer):
    row = {"image": "missing.png", "audio": [0.0], "text": "a b"}
    assert shapes(reader({"input_ids"}, tokenizer, processor=None).samples([row])) == [{"input_ids": (4,)}]


def test_a_processor_of_both_is_given_both(tokenizer):
    calls = []

    def processor(**kwargs):
        calls.append(kwargs)
        return {"pixel_values": torch.zeros(1, 3, 2, 2), "input_ids": torch.tensor([[1, 4, 2, 3]]), **mask}

    mask = {"attention_mask": torch.tensor([[1, 1, 1, 0]])}
    wrapped = type("Both", (), {"tokenizer": tokenizer, "__call__": lambda self, **kwargs: processor(**kwargs)})()
    read = reader(processor=wrapped, length=3)
    row = {"image": Image.new("L", (4, 4)), "text": "a b c"}
    ((inputs, _),) = read.samples([row])
    assert inputs["input_ids"].tolist() == [1, 4, 2]
    assert "attention_mask" not in inputs
    assert calls[0]["text"] == "a b c"
    assert calls[0]["max_length"] == 3
    assert calls[0]["images"].mode == "RGB"
    assert read.truncated == 1


@pytest.mark.parametrize(
    "row",
    [
        {"image": Image.new("RGB", (2, 2))},
        Image.new("RGB", (2, 2)),
        (Image.new("RGB", (2, 2)), 3),
        {"pixel_values": np.zeros((3, 1, 1)), "text": "not read"},
        {"pixel_values": torch.zeros(3, 1, 1, dtype=torch.float64)},
    ],
)
def test_ways_to_give_an_image(row):
    ((inputs, _),) = reader({"pixel_values"}).samples([row])
    assert shapes([(inputs, None)]) == [{"pixel_values": (3, 1, 1)}]
    assert inputs["pixel_values"].dtype == torch.float32


def pixels(image):
    ((inputs, _),) = reader({"pixel_values"}, processor=whole).samples([{"image": image}])
    return inputs["pixel_values"]


def whole(images, return_tensors):
    return {"pixel_values": torch.tensor(np.asarray(images)).float().movedim(-1, 0)[None]}


def test_images_of_16_bits_are_scaled():
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    assert (pixels(Image.fromarray(values))[0] - torch.tensor(values / 257)).abs().max() <= 1


@pytest.mark.parametrize("mode", ["I", "F"])
def test_images_of_no_known_range_are_left_out(mode):
    with pytest.raises(InputError, match=rf"no sample could be read: .*range of its values \(mode {mode}\)"):
        pixels(Image.new(mode, (4, 4)))


def test_images_are_turned_as_their_camera_says(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (20, 16)).save(tmp_path / "a.jpg", exif=turned)
    assert pixels(tmp_path / "a.jpg").shape == (3, 20, 16)


def test_bytes_are_read_rather_than_the_path_that_they_came_from(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert pixels({"bytes": (tmp_path / "a.png").read_bytes(), "path": "elsewhere/a.png"}).shape == (3, 4, 4)


def test_batches_are_taken_apart_and_lose_their_padding():
    rows = [
        {"pixel_values": torch.full((3, 2, 2), float(s)), "input_ids": torch.arange(4), "labels": torch.tensor(s)}
        for s in range(4)
    ]
    masks = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]])
    loader = DataLoader([{**row, "attention_mask": mask} for row, mask in zip(rows, masks, strict=True)], batch_size=2)
    samples = gathered(reader().samples(loader))
    assert [row["input_ids"].tolist() for row in samples.inputs] == [[0, 1, 2], [1, 2, 3], [0, 1, 2, 3], [0]]
    assert [float(row["pixel_values"][0, 0, 0]) for row in samples.inputs] == [0, 1, 2, 3]
    assert [label.item() for label in samples.labels] == [0, 1, 2, 3]


def test_a_text_as_label_is_what_the_decoder_reads():
    takes = {"input_ids", "decoder_input_ids", "labels"}
    row = {"input_ids": [5, 6], "labels": [7, 8, 2, -100]}
    ((inputs, label),) = reader(takes, start=0).samples([row])
    assert inputs["decoder_input_ids"].tolist() == [0, 7, 8, 2]
    assert label is None


def test_sound():
    calls = []

    def extract(wave, sampling_rate, return_tensors):
        calls.append(sampling_rate)
        return {"input_features": torch.tensor(wave).view(1, 1, -1)}

    read = reader({"input_features"}, processor=SimpleNamespace(feature_extractor=extract))
    wave = [0.0, 0.5, 1.0]
    rows = [{"audio": wave}, {"audio": {"array": np.array(wave), "sampling_rate": 8000}}]
    assert shapes(read.samples(rows)) == [{"input_features": (1, 3)}] * 2
    assert calls == [16000, 8000]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"picture": 1, "caption": "a"}, "a row has picture, caption, and none of image, audio, text, question or"),
        ({}, "a row has nothing, and none of image"),
        (3, "cannot use a row of type int"),
        ({"pixel_values": "red"}, "pixel_values must be numbers"),
        ({"text": "a"}, "texts need a tokenizer"),
        ({"text": ["a", "b"]}, "the text of a row must be one string"),
        ({"question": 3}, "the text of a row must be one string"),
        ({"pixel_values": torch.zeros(1, 3, 1, 1), "label": 3}, "label of a batch must have an entry for each sample"),
        ({"pixel_values": torch.zeros(2, 3, 1, 1), "label": [3]}, "label of a batch must have an entry"),
    ],
)
def test_refusals(row, message):
    with pytest.raises(InputError, match=message):
        reader(processor=None).samples([row])


@pytest.mark.parametrize(
    ("text", "message"), [("{", "line 1 is not JSON"), ("[1]", "line 1 is not an object"), ("", None)]
)
def test_files_that_hold_no_rows(tmp_path, text, message):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    if message is None:
        assert json_rows(path) == {}
        return
    with pytest.raises(InputError, match=message):
        json_rows(path)


def test_rows_in_another_encoding_are_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes('{"text": "caf\u00e9"}'.encode("latin-1"))
    with pytest.raises(InputError, match=r"is not UTF-8 text \(byte 13\)"):
        json_rows(path)
