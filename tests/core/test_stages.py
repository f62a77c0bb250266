"""The log of stages: seconds and memory; progress only where it is wanted."""

import time

import pytest
import torch

from pyprune.core.stages import Stages


def test_a_stage_is_timed_and_its_peak_measured():
    stages = Stages(quiet=True)
    with stages.stage("small"):
        time.sleep(0.02)
    with stages.stage("large"):
        torch.ones(64 << 18).sum()  # 64 MiB
    small, large = stages.log
    assert (small.name, large.name) == ("small", "large")
    assert 0.02 <= small.seconds < 2
    assert large.host_mib >= 64


def test_a_failed_stage_is_not_logged():
    stages = Stages(quiet=True)
    with pytest.raises(KeyError), stages.stage("fails"):
        raise KeyError
    assert stages.log == []


@pytest.mark.parametrize("quiet", [True, False])
def test_progress_passes_every_item_and_speaks_only_when_asked(quiet, capsys):
    assert list(Stages(quiet=quiet).progress([1, 2, 3], "counting")) == [1, 2, 3]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("counting" in captured.err) is not quiet
