"""ReSt's schedule, against every pair that the published scripts list, and the search for its break-point."""

import pytest

from pyprune.recovery.rest import MASKS_ALONE, break_point, effort

# (break-point, layers): {size: (data in %, layers)}, as published for models of 4 and of 12 layers.
PUBLISHED = {
    (0.6, 4): {0.9: (10, 0), 0.6: (10, 0), 0.5: (60, 1), 0.4: (73, 2), 0.3: (86, 2), 0.2: (100, 3)},
    (0.8, 4): {0.8: (10, 0)},
    (0.5, 12): {0.5: (10, 0), 0.4: (60, 3), 0.3: (80, 6), 0.2: (100, 9)},
}


@pytest.mark.parametrize(
    ("point", "layers", "size", "share", "trained"),
    [(p, n, size, *pair) for (p, n), sizes in PUBLISHED.items() for size, pair in sizes.items()],
)
def test_the_published_pairs(point, layers, size, share, trained):
    found = effort(size, point, layers)
    assert int(100 * found.share + 1e-6) == share  # the scripts cut 86.67 to 86
    assert found.layers == trained


def test_between_and_beyond_the_sizes_of_the_grid():
    assert effort(0.55, 0.6, 4) == effort(0.5, 0.6, 4)
    assert effort(0.05, 0.6, 4) == effort(0.2, 0.6, 4)
    assert effort(0.25, 0.3, 4) == (0.6, 1)
    assert effort(0.6, 0.6, 4) == MASKS_ALONE


@pytest.mark.parametrize("true", [0.9, 0.8, 0.7, 0.6, 0.5, 1.0])
def test_the_break_point_is_found_in_few_questions(true):
    asked = []

    def suffices(size):
        asked.append(size)
        return size >= true

    assert break_point(suffices, 0.4) == true
    assert len(asked) <= 3


def test_the_next_size_above_needs_no_search_where_there_is_none():
    assert break_point(lambda size: pytest.fail(f"asked for {size}"), 0.95) == 1.0
