"""The ledger: verdicts of the published numbers, by hand, and of measured ones."""

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from snakemake.cli import get_argument_parser
from test_tables import make_row

from iapo_bench.errors import UserError
from iapo_bench.report.claims import Evidence, judge, make_claims
from iapo_bench.report.claims.checks import check_numbers
from iapo_bench.report.claims.ledger import Claim, read_claims
from iapo_bench.report.claims.numbers import Measured, Published

ROOT = Path(__file__).parent.parent
LEDGER = ROOT / "configs/claims.yaml"
PUBLISHED = ROOT / "results/published/table1.csv"
SECOND_HAND = ROOT / "results/published/second_hand.csv"


def published(model: str) -> Published:
    table = pd.read_csv(PUBLISHED)
    return Published(table[table["model"] == model])


def claim(**check) -> Claim:
    return Claim(id="x", sentence="x", source="x", check=check)


def test_a_published_difference_by_hand():
    """P@16 .9735 +- .0012 and .9778 +- .0026 at 7B, three runs each, population standard deviations."""
    found = published("Qwen2.5-7B-Instruct").difference("iapo", "dapo", "pass@16")
    assert found.value == pytest.approx(-0.0043)
    assert found.value / np.sqrt((0.0012**2 + 0.0026**2) / 2) == pytest.approx(-2.1237, abs=1e-3)
    assert found.p == pytest.approx(0.13, abs=0.005)
    assert published("Qwen2.5-7B-Instruct").difference("iapo", "base", "pass@16").p == pytest.approx(0.007, abs=5e-4)


def test_the_spread_of_a_published_ratio_is_that_of_its_parts():
    rows = published("Qwen2.5-0.5B-Instruct")
    relative = np.hypot(0.0084 / 0.8519, 0.22 / 150.37) * np.sqrt(1.5)
    assert rows._std("iapo", "ratio@16") == pytest.approx(0.00567 * relative)


def test_the_ledger_on_the_published_numbers():
    evidence = Evidence(pd.read_csv(PUBLISHED), pd.read_csv(SECOND_HAND), [])
    table = judge(read_claims(LEDGER), evidence)
    verdicts = table.groupby("claim")["verdict"].apply(list).to_dict()
    assert verdicts["best-ratio"] == ["supported"] * 3
    assert verdicts["shorter-than-dapo"] == ["supported"]
    assert verdicts["no-accuracy-loss-dapo"] == ["not shown"]
    assert verdicts["no-accuracy-loss-base"] == ["supported", "supported", "contradicted"]
    assert verdicts["overthinking"] == ["units differ"]
    assert verdicts["base-is-qwens"] == ["contradicted"]
    assert verdicts["inference-time"] == verdicts["terms-contribute"] == ["no numbers"]
    anchored = table[table["claim"] == "base-is-qwens"]["evidence"].item()
    assert "0.4261" in anchored
    assert "0.496" in anchored
    assert "github.com/verl-project" in anchored


def test_other_numbers_get_other_verdicts():
    table = pd.read_csv(PUBLISHED)
    longer = table.assign(**{"length@16": table["length@16"].where(table["method"] != "iapo", 400.0)})
    longer["ratio@16"] = longer["pass@16"] / longer["length@16"]
    verdicts = judge(read_claims(LEDGER), Evidence(longer, pd.read_csv(SECOND_HAND), [])).set_index("claim")["verdict"]
    assert list(verdicts["best-ratio"]) == ["contradicted"] * 3
    assert verdicts["shorter-than-dapo"] == "contradicted"


RIVALS = {"dapo": 50.0, "gfpo": 52.0, "gtpo": 54.0, "sgrpo": 56.0}


def measured(**changes) -> list:
    """IAPO shorter than all and no less accurate; without informativeness, as long as with. Controls as `controls`
    makes them, with a quarter of the samples."""
    rows = [
        make_row("base", (1, 16), 0.5, 60.0, train_seeds=[0]),
        make_row("base_shortest", (1,), 0.5, 30.0, train_seeds=[0], n_samples=8),
        *(make_row(method, (1, 16), 0.5, length) for method, length in RIVALS.items()),
        make_row("iapo", (1, 16), 0.5, 40.0),
        make_row("iapo_ni", (1, 16), 0.5, 40.0, parent="iapo"),
        make_row("iapo_nx", (1, 16), 0.5, 45.0, parent="iapo"),
    ]
    return [replace(row, **changes) for row in rows]


def test_measured_verdicts_do_not_reproduce_what_another_model_published():
    table = judge(read_claims(LEDGER), Evidence(pd.read_csv(PUBLISHED), pd.read_csv(SECOND_HAND), measured()))
    verdicts = table[table["numbers"] == "measured"].set_index("claim")["verdict"]
    assert verdicts["best-ratio"] == "holds here"
    assert verdicts["shorter-than-dapo"] == "does not hold here"  # 20% shorter, not 47%
    assert verdicts["terms-contribute"] == "undecided here"  # one of the two does
    assert verdicts["shortens-by-information"] == "undecided here"
    assert "early-exit-contributes" not in verdicts  # its ablation was not trained
    assert set(table[table["numbers"] == "measured"]["tier"]) == {"micro"}


@pytest.mark.parametrize(("size", "shorter"), [("7B", "not reproduced"), ("0.5B", "does not hold here")])
def test_a_claim_is_reproduced_on_its_own_model_alone(size, shorter):
    """The best ratio is claimed for every size, the shorter completions for 7B."""
    rows = measured(model=f"Qwen2.5-{size}-Instruct", dataset="gsm8k")
    table = judge(read_claims(LEDGER), Evidence(pd.read_csv(PUBLISHED), pd.read_csv(SECOND_HAND), rows))
    verdicts = table[table["numbers"] == "measured"].set_index("claim")["verdict"]
    assert verdicts["best-ratio"] == "reproduced"
    assert verdicts["shorter-than-dapo"] == shorter
    assert verdicts["terms-contribute"] == "undecided here"  # the paper does not say of which model


def test_a_claim_of_the_best_is_of_the_methods_that_it_names():
    """A variant, or a method that the paper does not compare with, may have the better ratio."""
    best = claim(kind="best", measure="ratio@16", method="iapo", against=["dapo"]).check
    rows = [*measured(), make_row("mine", (1, 16), 0.5, 20.0)]
    holds, text = check_numbers(best, Measured(rows))
    assert holds is True
    assert "dapo" in text
    assert check_numbers(best, Measured([row for row in rows if row.method != "dapo"])) is None


@pytest.mark.parametrize(("tier", "dataset", "world"), [("micro", "micro", []), ("qwen-0.5b", "math500", ["math500"])])
def test_the_commands_of_a_verdict_can_be_run(tier, dataset, world):
    """As Snakemake reads them: its targets, and what --config says."""
    rows = measured(tier=tier, dataset=dataset)
    table = judge(read_claims(LEDGER), Evidence(pd.read_csv(PUBLISHED), pd.read_csv(SECOND_HAND), rows))
    commands = table[table["command"] != ""].groupby("numbers")["command"].unique()
    read = {
        numbers: [get_argument_parser().parse_args(shlex.split(part)[1:]) for part in only.split(" && ")]
        for numbers, [only] in commands.items()
    }
    assert [each.targets for each in read["published"]] == [["claims"]]
    assert [each.targets for each in read["measured"]] == [["all", "ablations"], ["claims"]]
    chosen = [f"world={{name: {name}}}" for name in world]
    assert read["measured"][0].config == [f"tier={tier}", *chosen]
    assert all(each.cores for each in [*read["measured"], *read["published"]])


def test_what_a_smoke_tier_measures_means_nothing():
    table = judge(
        read_claims(LEDGER), Evidence(pd.read_csv(PUBLISHED), pd.read_csv(SECOND_HAND), measured(tier="smoke"))
    )
    assert table[table["tier"] == "smoke"]["evidence"].str.contains("mean nothing").all()


@pytest.mark.parametrize(("length", "holds"), [(26.5, True), (40.0, False), (49.99, False), (60.0, False)])
def test_a_change_of_a_size_is_contradicted_by_an_interval_without_it(length, holds):
    check = claim(
        kind="change", measure="length@1", method="iapo", against=["dapo"], direction="down", by=-0.47, tolerance=0.01
    ).check
    rows = Measured([make_row("dapo", (1,), 0.5, 50.0), make_row("iapo", (1,), 0.5, length)])
    assert check_numbers(check, rows)[0] is holds


def test_no_loss_is_shown_contradicted_or_neither():
    check = claim(kind="no_loss", measure="pass@1", method="iapo", against="dapo").check
    for accuracy, holds in ((0.6, True), (0.4, False)):
        rows = Measured([make_row("dapo", (1,), 0.5), make_row("iapo", (1,), accuracy)])
        assert check_numbers(check, rows)[0] is holds


def test_files(tmp_path):
    rows = measured()
    paths = []
    for row in rows:
        paths.append(tmp_path / f"{row.method}.json")
        row.write(paths[-1])
    bench = pd.DataFrame({"T": [128, 256, 512], "batch": 8, "seconds_kv_replicated": [1.0, 4.0, 32.0]})
    bench.to_csv(tmp_path / "bench.csv", index=False)
    times = {"model": "small", "dataset": "micro", "method": ["iapo", "dapo"], "inference_seconds": [8.0, 10.0]}
    pd.DataFrame(times | {"inference_completions": 100}).to_csv(tmp_path / "wallclock.csv", index=False)
    make_claims(
        LEDGER,
        published=PUBLISHED,
        second_hand=SECOND_HAND,
        summaries=paths,
        wallclocks=[tmp_path / "wallclock.csv"],
        bench=tmp_path / "bench.csv",
        out=tmp_path / "claims.csv",
    )
    table = pd.read_csv(tmp_path / "claims.csv").query("numbers == 'measured'").set_index("claim")
    assert table.loc["quadratic", "verdict"] == "does not hold here"  # a doubling takes eight times as long
    assert "power 3.00" in table.loc["quadratic", "evidence"]
    assert table.loc["inference-time", "verdict"] == "holds here"
    assert "20.0%" in table.loc["inference-time", "evidence"]
    text = (tmp_path / "claims.md").read_text()
    assert "**not shown**" in text
    assert "reproduce nothing" in text


STATED = "  - {{id: a, sentence: b, source: c, check: {{kind: {}, measure: x, method: y}}}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "claims:\n  - {id: a, sentence: b, source: c, check: {kind: worst, measure: x, method: y}}\n",
            "claims.0.check",
        ),
        ("claims: [", "is not YAML"),
        (
            "claims:\n" + 2 * "  - {id: a, sentence: b, source: c, check: {kind: units, values: []}}\n",
            "duplicate claim 'a'",
        ),
    ],
)
def test_a_bad_ledger_is_refused(tmp_path, text, message):
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_claims(path)


def test_rows_of_earlier_calls_are_judged_apart():
    """A row that was asked, sampled or budgeted otherwise says nothing of the others."""
    asked = {"evaluate": {"n_samples": 32}, "train": {"completions": 64}}
    rows = [replace(row, settings=asked) for row in measured()]
    (iapo,) = [row for row in rows if row.method == "iapo"]
    rest = [row for row in rows if row is not iapo]
    others = [
        replace(iapo, settings=asked | {"evaluate": {"n_samples": 16}}),
        replace(iapo, settings=asked | {"train": {"completions": 8}}),
        replace(iapo, tally=replace(iapo.tally, problems=iapo.tally.problems[::-1])),
    ]

    def judged(row) -> set[str]:
        evidence = Evidence(pd.read_csv(PUBLISHED), pd.read_csv(SECOND_HAND), [row, *rest])
        table = judge(read_claims(LEDGER), evidence)
        return set(table[table["numbers"] == "measured"]["claim"])

    assert "best-ratio" in judged(iapo)
    for other in others:
        assert not judged(other) & {"best-ratio", "shorter-than-dapo"}
