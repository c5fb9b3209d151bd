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
        # A group's advantages sum to 0, so what is left of the loss may be all rounding.
        mine, other = (each.pop("loss") for each in first)
        assert mine == pytest.approx(other, rel=1e-4, abs=1e-7)
        assert not differences(*first, 1e-4)


def differences(found, wanted, tolerance, place="") -> list[str]:
    """Every number or word that is another one, with its place: real numbers to `tolerance` of their list's largest."""
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
            if not math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance * largest):
                different.append(f"{inner} is {one}, not {other}")
        else:
            different += differences(one, other, tolerance, inner)
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


@pytest.mark.parametrize(("one", "other"), [(2.15e-6, 2.16e-6), (0.0, 5.6e-9), (0.5, 0.50004)])
def test_another_processor_may_round_otherwise(one, other):
    compare({"steps": {"loss": [one, 7.0]}}, {"steps": {"loss": [other, 8.0]}}, same_arithmetic=False)


@pytest.mark.parametrize(("one", "other"), [(2.2e-4, 2.1e-4), (0.0, 5.6e-6), (0.5, 0.5001), (1e-6, -1e-6)])
def test_on_another_processor_more_than_rounding_is_noticed(one, other):
    with pytest.raises(AssertionError):
        compare({"steps": {"loss": [one]}}, {"steps": {"loss": [other]}}, same_arithmetic=False)
    with pytest.raises(AssertionError):  # a number that is no loss has no such floor
        compare(
            {"steps": {"loss": [0.0], "lr": [1e-8]}}, {"steps": {"loss": [0.0], "lr": [2e-8]}}, same_arithmetic=False
        )


def test_every_method_has_its_trajectories(wanted):
    assert {name.split()[0] for name in wanted} >= set(list_methods())
