"""Stage results beside an unfinished output, and when a resumed run may use them."""

import pytest
import torch

from pyprune.core.batches import Samples
from pyprune.core.errors import InputError, MismatchError
from pyprune.core.partial import Partial, data_fingerprint, fingerprint
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores

SETTINGS = {"model": "abc", "seed": 0}


def started(out):
    partial = Partial(out, SETTINGS, resume=False)
    partial.save_scores(Scores({"a": torch.tensor([1.0, 2.0])}))
    partial.save_plan(Plan({"a": torch.tensor([1])}, {"a": 2}, 3.0))
    return partial


def test_a_new_run_has_no_results(tmp_path):
    for resume in (False, True):
        partial = Partial(tmp_path / f"out{resume}", SETTINGS, resume)
        assert partial.load_scores() is None
        assert partial.folder == tmp_path / f"out{resume}.partial"


def test_resume_finds_the_scores(tmp_path):
    started(tmp_path / "out")
    resumed = Partial(tmp_path / "out", dict(SETTINGS), resume=True)
    assert resumed.load_scores().values["a"].tolist() == [1.0, 2.0]
    assert Plan.load(resumed.folder / "plan.json").kept["a"].tolist() == [1]


def test_without_resume_older_results_go(tmp_path):
    started(tmp_path / "out")
    partial = Partial(tmp_path / "out", SETTINGS, resume=False)
    assert partial.load_scores() is None
    assert not partial.folder.exists()


@pytest.mark.parametrize("other", [{"model": "abd", "seed": 0}, {"model": "abc"}, {**SETTINGS, "data": "d"}])
def test_results_of_other_settings_are_refused_and_kept(tmp_path, other):
    folder = started(tmp_path / "out").folder
    before = sorted(p.name for p in folder.iterdir())
    with pytest.raises(MismatchError, match=r"was made with another (model|seed|data) "):
        Partial(tmp_path / "out", other, resume=True)
    assert sorted(p.name for p in folder.iterdir()) == before


def test_a_folder_without_settings_is_a_crash_and_starts_anew(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "scores.safetensors").write_text("half")
    partial = Partial(tmp_path / "out", SETTINGS, resume=True)
    assert partial.load_scores() is None


def test_a_trailing_slash_is_the_same_output(tmp_path):
    started(f"{tmp_path}/out/")
    assert Partial(f"{tmp_path}/out", SETTINGS, resume=True).load_scores() is not None
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_before_the_first_result(tmp_path):
    partial = Partial(tmp_path / "out", SETTINGS, resume=False)
    assert list(tmp_path.iterdir()) == []
    partial.remove()


def test_a_finished_run_leaves_nothing(tmp_path):
    started(tmp_path / "out").remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("resume", [False, True])
def test_what_others_put_there_is_never_deleted(tmp_path, resume):
    partial = started(tmp_path / "out")
    precious = partial.folder / "precious.txt"
    precious.write_text("keep me")
    with pytest.raises(InputError, match=r"'precious\.txt' in it is none"):
        Partial(tmp_path / "out", SETTINGS, resume)
    partial.remove()
    assert [p.name for p in partial.folder.iterdir()] == ["precious.txt"]
    (tmp_path / "file.partial").touch()
    with pytest.raises(InputError, match="is no folder"):
        Partial(tmp_path / "file", SETTINGS, resume)


def test_fingerprint_of_a_model_sees_every_weight():
    model = torch.nn.Sequential(torch.nn.Linear(9, 20), torch.nn.Linear(20, 3))
    first = fingerprint(model)
    assert fingerprint(model) == first
    with torch.no_grad():
        model[1].weight[2, 19] += 1e-3
    assert fingerprint(model) != first
    assert fingerprint(model.double()) != first


def test_fingerprint_of_data_sees_tokens_order_and_borders():
    def of(*rows):
        return data_fingerprint(Samples([{"input_ids": torch.tensor(row)} for row in rows]))

    prints = [of([1, 2], [3]), of([1], [2, 3]), of([1, 2, 3]), of([3], [1, 2]), of([1, 2], [4])]
    assert len(set(prints)) == len(prints)
    assert of([1, 2], [3]) == prints[0]
