"""The list of departures is the profile `released`, no more and no less."""

from dataclasses import asdict

import pytest

from iapo_bench.method import load_method
from iapo_bench.report.departures import COMPARED, DEPARTURES, departures_of


def merged(parts: list[dict]) -> dict:
    whole: dict = {}
    for part in parts:
        for key, value in part.items():
            whole[key] = merged([whole.get(key, {}), value]) if isinstance(value, dict) else value
    return whole


@pytest.mark.parametrize("name", COMPARED)
def test_the_departures_make_up_the_profile(name):
    options = merged([departure.options for departure in departures_of(name)])
    assert asdict(load_method(name, "paper", **options)) == asdict(load_method(name, "released"))


@pytest.mark.parametrize("name", COMPARED)
def test_each_departure_changes_the_method_that_it_is_of(name):
    for departure in departures_of(name):
        if departure.options:
            changed = asdict(load_method(name, "paper", **departure.options))
            assert changed != asdict(load_method(name, "paper")), departure.name


def test_each_departure_says_where_it_stands():
    for departure in DEPARTURES:
        for method in departure.methods:
            assert departure.where(method)
            assert ("not reproduced" in departure.where(method)) == (not departure.options and not departure.train)
    smoothing = next(departure for departure in DEPARTURES if departure.name == "smoothing")
    assert smoothing.where("iapo") == "methods/iapo.py: smoothing = True"
