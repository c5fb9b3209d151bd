"""The committed trajectories of every method and profile: what moves one of their numbers moves a result."""

import math

import golden
import pytest

from iapo_bench.plugins import list_methods


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("golden")


@pytest.fixture
def command(run):
    def call(*arguments):
        code, said = run(*arguments)
        assert code == 0, said

    return call


@pytest.fixture(scope="module")
def wanted():
    if not golden.golden_file().is_file():
        pytest.skip(f"no trajectories of {golden.golden_file().stem}: python -m tests.golden on a good commit")
    return golden.read()


def compare(found, wanted, *, same_arithmetic: bool) -> None:
    """Where rounding differs a draw can fall out otherwise, and then everything does: only the first step is alike."""
    if same_arithmetic:
        assert not differences(found, wanted, golden.TOLERANCE)
    else:
        first = [{name: column[:1] for name, column in each["steps"].items()} for each in (found, wanted)]
        # A loss is a sum of advantages that cancel: what is left of it may be rounding alone.
        assert not differences(*first, 1e-4, least=1e-7)


def differences(found, wanted, tolerance, place="", least=0.0) -> list[str]:
    """Every number or word that is another one, with its place: real numbers to `tolerance` of their list's largest, or
    to `least`."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        pairs = {f"{place}.{key}": (found.get(key), wanted.get(key)) for key in found.keys() | wanted.keys()}
    elif isinstance(wanted, list) and isinstance(found, list) and len(found) == len(wanted):
        pairs = {f"{place}[{i}]": pair for i, pair in enumerate(zip(found, wanted, strict=True))}
    else:
        return [] if found == wanted else [f"{place} is {found}, not {wanted}"]
    reals = [value for value in wanted if isinstance(value, float)] if isinstance(wanted, list) else []
    largest = max(map(abs, reals), default=0.0)
    different = []
    for inner, (one, other) in pairs.items():
        if isinstance(one, float) and isinstance(other, float):
            if not math.isclose(one, other, rel_tol=tolerance, abs_tol=max(tolerance * largest, least)):
                different.append(f"{inner} is {one}, not {other}")
        else:
            different += differences(one, other, tolerance, inner, least)
    return different


def test_the_base(command, folder, wanted):
    found = golden.make_base(command, folder)
    assert not differences(found, wanted["base"], 1e-4)


@pytest.mark.parametrize(("method", "profile"), golden.trajectories())
def test_a_run_is_what_it_was(command, folder, wanted, method, profile):
    if not (folder / "speaker").exists():
        golden.make_base(command, folder)
    found = golden.record(command, folder, method, profile)
    same_arithmetic = golden.arithmetic() == wanted["arithmetic"]
    compare(found, wanted[f"{method} {profile}"], same_arithmetic=same_arithmetic)


def test_every_method_has_its_trajectories(wanted):
    assert {name.split()[0] for name in wanted} >= set(list_methods())
