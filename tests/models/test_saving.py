"""Complete checkpoints or none."""

import json

import pytest

import pyprune
from pyprune.core.errors import InputError, MismatchError
from pyprune.models.adapter import adapter_for
from pyprune.models.loading import load, resolve
from pyprune.models.saving import check_output, complete_directory, write_checkpoint
from pyprune.testing.models import random_plan, tiny_model

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def test_sentence_transformers_files_travel_along(tmp_path):
    directory, _ = resolve(MINILM)
    model, tokenizer = load(MINILM)
    out = tmp_path / "out"
    write_checkpoint(model, tokenizer, out, directory)
    assert json.loads((out / "1_Pooling/config.json").read_text())["pooling_mode_mean_tokens"]
    for name in ("modules.json", "sentence_bert_config.json", "tokenizer.json", "config.json", "model.safetensors"):
        assert (out / name).is_file()
    assert load(out)[1]("a text").input_ids == tokenizer("a text").input_ids


def test_a_generation_config_travels_along(tmp_path):
    model = tiny_model("llama", "AutoModelForCausalLM")
    model.generation_config.max_new_tokens = 7
    out = tmp_path / "out"
    write_checkpoint(model, None, out)
    assert load(out)[0].generation_config.max_new_tokens == 7


def test_a_checkpoint_is_never_overwritten_unasked(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert check_output(out) == out
    (out / "file").write_text("precious")
    with pytest.raises(InputError, match="is not empty"):
        check_output(out)
    with pytest.raises(InputError, match="is a file"):
        check_output(out / "file", overwrite=True)
    with pytest.raises(InputError, match="cannot be written to"):
        check_output(out / "file" / "below")
    assert check_output(out, overwrite=True) == out


def test_a_plan_that_did_not_make_the_model_is_refused(tmp_path):
    model, other = tiny_model("bert"), tiny_model("llama")
    for of in (model, other):
        plan = random_plan(adapter_for(of).anatomy(of), emptied=False)
        with pytest.raises(
            MismatchError, match=r"the plan did not make this model: layers\.0\.heads has 4 units here, "
        ):
            pyprune.save(model, tmp_path / "small", plan=plan)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_too_long_for_what_is_written_beside_it(tmp_path):
    with pytest.raises(InputError, match="the directory's name is longer than 240 bytes"):
        check_output(tmp_path / ("a" * 241))
    with complete_directory(tmp_path / ("a" * 240)):
        pass


def test_a_failed_save_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fail_halfway(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_leaves_what_was_there(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("precious")
    with pytest.raises(ZeroDivisionError):
        fail_halfway(tmp_path / "out", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "file").read_text() == "precious"


def test_an_overwrite_replaces_all(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("old")
    with complete_directory(tmp_path / "out", overwrite=True) as staging:
        (staging / "other").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["other"]


def fail_halfway(out, **options):
    with complete_directory(out, **options) as staging:
        (staging / "half").write_text("written")
        _ = 1 / 0


def test_a_save_appears_at_once_and_with_the_usual_permissions(tmp_path):
    with complete_directory(tmp_path / "deep" / "out") as staging:
        (staging / "file").write_text("written")
        assert not (tmp_path / "deep" / "out").exists()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "deep" / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_modules_that_lead_out_of_the_checkpoint_are_not_copied(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "../secret"}]))
    (tmp_path / "secret").mkdir()
    with pytest.raises(InputError, match="leads out of the checkpoint"):
        write_checkpoint(tiny_model("bert"), None, tmp_path / "out", source)
    assert not (tmp_path / "out" / "secret").exists()


def test_a_link_keeps_pointing_to_what_replaces_its_folder(tmp_path):
    (tmp_path / "disk" / "old").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "old")
    for overwrite in (False, True):
        with complete_directory(tmp_path / "link", overwrite) as folder:
            (folder / "config.json").write_text("{}")
        assert (tmp_path / "link").is_symlink()
        assert [p.name for p in (tmp_path / "disk" / "old").iterdir()] == ["config.json"]
        assert sorted(p.name for p in tmp_path.rglob("*")) == ["config.json", "disk", "link", "old"]


@pytest.mark.parametrize("name", [".", ".."])
def test_the_current_folder_cannot_be_replaced(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="give the directory's name"):
        check_output(name, overwrite=True)
