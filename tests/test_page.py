"""The page of results: the verdict first, nothing from outside, and nothing claimed that is not known."""

import re

import pytest
from test_comparisons import rows_of

from iapo_bench.errors import UserError
from iapo_bench.report.comparisons import compare, make_comparisons
from iapo_bench.report.page import make_page, verdict_blocks
from iapo_bench.report.paired import make_paired


def test_the_verdict_names_who_is_better_and_what_is_not_known():
    first, second, methods = verdict_blocks(compare(rows_of()))
    assert first == "**Pass@1 against the base**, these checkpoints: better: more accurate; alike: not told apart."
    assert second.startswith("**Length against the base**, these checkpoints: better: shorter")
    assert methods.startswith("Whether other training seeds would say the same is not known")
    passes, _, several = verdict_blocks(compare(rows_of(train_seeds=(0, 1, 2))))
    assert passes.startswith(f"{first} These methods, with other training seeds too: ")
    assert re.fullmatch(r"With other training seeds too, \d+ of 18 comparisons are decided\.", several)


def test_the_page_opens_with_the_verdict_and_works_offline(tmp_path):
    paths = []
    for row in rows_of():
        paths.append(tmp_path / "summaries" / f"{row.method}.json")
        row.write(paths[-1])
    table = tmp_path / "table1.csv"
    with pytest.raises(UserError, match="make the comparisons first"):
        make_page(table, tmp_path / "report.html")
    make_comparisons(paths, out=tmp_path / "comparisons.csv", figure=tmp_path / "figures" / "comparisons")
    make_paired(paths, tmp_path / "figures" / "paired")
    make_page(table, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.index("<h1>small on micro</h1>") < page.index("against the base") < page.index("<figure>")
    assert page.count("<figcaption>") == page.count("<svg") == 2
    assert "<table>" in page
    behind = re.findall(r"(\d+) problems, \d+ samples with each sampling seed, training seeds 0\.</figcaption>", page)
    assert behind == 2 * [str(len(rows_of()[0].tally.problems))]
    outside = re.findall(r'(?:src|href)="(?!#|data:)[^"]*"|@import', page)
    assert not outside
    ids = re.findall(r' id="([^"]+)"', page)
    assert {name.partition("-")[0] for name in ids} == {"paired", "comparisons"}, "drawings do not share names"
