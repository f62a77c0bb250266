import pytest

from pyprune.core.errors import InputError
from pyprune.core.registry import Registry


def filled():
    registry = Registry("fruit")
    registry.register("apple", "pomme")("red")
    return registry


def test_names_find_their_objects():
    registry = filled()
    assert (registry["apple"], registry["pomme"], list(registry)) == ("red", "red", ["apple", "pomme"])
    assert "apple" in registry
    assert "pear" not in registry


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match="unknown fruit 'pear'; known: apple, pomme"):
        filled()["pear"]


def test_a_name_is_taken_once():
    registry = filled()
    with pytest.raises(ValueError, match="fruit 'apple' is registered already"):
        registry.register("apple")("green")
    assert registry["apple"] == "red"
