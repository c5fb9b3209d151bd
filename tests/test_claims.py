"""The ledger: verdicts of the published numbers, by hand, and of measured ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_tables import make_row

from iapo_bench.errors import UserError
from iapo_bench.report.claims import (
    Claim,
    Evidence,
    Measured,
    Published,
    check_numbers,
    judge,
    make_claims,
    read_claims,
)

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


def measured(**changes) -> list:
    """IAPO shorter than DAPO and no less accurate; without informativeness, as long as with."""
    rows = [
        make_row("base", (1, 16), 0.5, 60.0, train_seeds=[0]),
        make_row("dapo", (1, 16), 0.5, 50.0),
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


def test_the_published_model_is_what_can_be_reproduced():
    rows = measured(model="Qwen2.5-7B-Instruct", dataset="gsm8k")
    table = judge(read_claims(LEDGER), Evidence(pd.read_csv(PUBLISHED), pd.read_csv(SECOND_HAND), rows))
    verdicts = table[table["numbers"] == "measured"].set_index("claim")["verdict"]
    assert verdicts["best-ratio"] == "reproduced"
    assert verdicts["shorter-than-dapo"] == "not reproduced"


def test_variants_are_no_rivals():
    """The ablation without informativeness may have the better ratio: the claim is of the table's methods."""
    rows = [make_row("dapo", (1, 16), 0.5, 50.0), make_row("iapo", (1, 16), 0.5, 40.0)]
    rows.append(make_row("iapo_ni", (1, 16), 0.5, 20.0, parent="iapo"))
    best = claim(kind="best", measure="ratio@16", method="iapo").check
    holds, text = check_numbers(best, Measured(rows))
    assert holds is True
    assert "dapo" in text


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
    times = {"model": "small", "method": ["iapo", "dapo"], "inference_seconds": [8.0, 10.0]}
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
            "claims:\n" + 2 * "  - {id: a, sentence: b, source: c, check: {kind: best, measure: x, method: y}}\n",
            "twice",
        ),
    ],
)
def test_a_bad_ledger_is_refused(tmp_path, text, message):
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_claims(path)
