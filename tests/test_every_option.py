"""Each option of each command reaches the function that does the work, under its name; one without a place fails."""

import ast
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import click
import pandas as pd
import pytest
import yaml
from test_every_setting import CONTENT

from iapo_bench.cli import cli
from iapo_bench.errors import UserError
from iapo_bench.machine import code

# By command: the function that does its work, and by option what is typed and what must arrive where, if it is not what
# `sample_of` types and arrives under the option's own name.
Place = tuple[tuple[str, ...], str, Any]
RUN = (("base=x", "iapo/3=y"), "runs", {"base": Path("x"), "iapo/3": Path("y")})
WORK: dict[str, tuple[str, dict[str, Place]]] = {
    "prepare": ("worlds.prepare:prepare", {}),
    "base": ("train.base:make_base", {}),
    "checkpoint": ("train.base:fetch_checkpoint", {"method": (("authors",), "job.source", "they/models")}),
    "train": (
        "train.run:train",
        {
            "method": (("iapo",), "job.method.name", "iapo"),
            "seed": (("7",), "job.seed", 7),
            "trial": (("0",), "job.train.updates_per_rollout", 3),
        },
    ),
    "sample": (
        "evaluate.sample:sample",
        {
            "split": (("validation",), "job.split", "validation"),
            "seeds": (("9", "8"), "job.evaluate.seeds", [9, 8]),
            "n_samples": (("5",), "job.evaluate.n_samples", 5),
        },
    ),
    "grade": ("evaluate.grade:grade", {"split": (("train",), "job.split", "train")}),
    "lm-eval": (
        "evaluate.lm_evaluation:evaluate",
        {
            "tasks": (("a", "b"), "job.lm_eval.tasks", ["a", "b"]),
            "limit": (("3",), "job.lm_eval.limit", 3),
            "backend": (("vllm",), "job.lm_eval.backend", "vllm"),
        },
    ),
    "calibration": ("tokens.calibration:make_calibration", {}),
    "token-roles": ("tokens.scores:score_tokens", {}),
    "time": ("report.timing:time_rows", {"runs": RUN}),
    "metrics": (
        "report.rows:measure",
        {
            "method": (("iapo",), "job.method", "iapo"),
            "grades": (("x", "y"), "grades", {4: Path("x"), 2: Path("y")}),
            "seeds": (("4", "2"), "grades", {4: Path("x"), 2: Path("y")}),
        },
    ),
    "table": ("report.table1:make_table", {}),
    "page": ("report.page:make_page", {}),
    "paired": ("report.paired:make_paired", {}),
    "comparisons": ("report.comparisons:make_comparisons", {}),
    "controls": ("report.controls:make_controls", {}),
    "frontier": ("report.frontier:make_frontier", {}),
    "costs": ("report.costs:make_costs", {"runs": RUN}),
    "ablations": ("report.ablations:make_ablations", {}),
    "sensitivity": ("report.sensitivity:make_sensitivity", {}),
    "wallclock": ("report.wallclock:make_wallclock", {"runs": RUN}),
    "curves": ("report.curves:make_curves", {"runs": RUN}),
    "tune": ("report.tuning:choose", {}),
    "lm-eval-table": ("report.lm_eval:make_lm_eval_table", {"runs": RUN}),
    "role-tables": (
        "tokens.roles:make_role_tables",
        {"runs": RUN, "out": (("x",), "informativeness", Path("x"))},
    ),
    "fidelity": ("report.fidelity:make_fidelity", {}),
    "protocol": ("report.protocol:make_protocol", {"runs": RUN}),
    "claims": ("report.claims:make_claims", {}),
    "informativeness": ("tokens.transcripts:score_transcripts", {}),
    "verify": (
        "report.verify:verify",
        {
            "points": (("0.25",), "margins", (0.25, 0.5)),
            "share": (("0.5",), "margins", (0.25, 0.5)),
            "out": (("written.csv",), "", None),
        },
    ),
    "explain": ("report.explain:explain", {}),
    "compare": ("report.side_by_side:compare", {}),
    "bundle": ("report.results:bundle", {}),
    "credit": ("tokens.credit:make_credit_page", {}),
    "watch": (
        "watch:watch",
        {"runs": (("x", "y"), "paths", (Path("x"), Path("y"))), "once": (("--once",), "once", True)},
    ),
    "try": ("try_out:try_method", {"method": (("brief",), "name", "brief")}),
    "doctor": ("doctor:examine_model", {"model": (("x",), "path", Path("x"))}),
    "plan": (
        "plan.show:plan",
        {"every_tier": ((), "", None)},
    ),
    "new": ("new.write:write_new", {"kind": (("reward",), "kind", "reward")}),
    "settings": ("config.reference:documents", {"write": (("--write",), "", None)}),
    "bench core": ("bench.core:bench_core", {"trl_micro_batch": (("3",), "micro_batch", 3)}),
    "bench engine": ("bench.engine:bench_engine", {}),
    "bench informativeness": ("bench.informativeness:bench_informativeness", {}),
    "bench approximations": ("bench.informativeness:bench_approximations", {}),
    "bench metrics": ("bench.metrics:bench_metrics", {"sizes": (("96", "97"), "sizes", (96, 97))}),
    "bench power": ("plan.power:power", {"work": (("x",), "summaries", [Path("x/summaries/row.json")])}),
    "bench step": ("bench.step:bench_step", {}),
    "bench table": ("bench.table:bench_table", {}),
}
# What else a command asks of the modules that it imports, and what the function gives back.
ALSO: dict[str, dict[str, dict[str, Any]]] = {
    "fidelity": {"report.departures": {"fidelity_job": lambda tier: tier.fidelity_job(["iapo"], {})}},
    "plan": {"plan.show": {"overview": list, "default_device": lambda tier: "cpu"}},
    "verify": {
        "report.verify": {
            "Margins": lambda points, share: (points, share),
            "REPRODUCED": "reproduced",
            "exit_status": lambda cells: 0,
            "report": lambda cells, margins: "",
            "surroundings": lambda results, against: "",
        }
    },
    "settings": {"config.reference": {"DOCUMENT": "settings.md"}},
    "bench informativeness": {"bench.informativeness": {"LENGTHS": (), "BATCHES": ()}},
    "bench metrics": {"bench.metrics": {"SIZES": ()}},
    "bench power": {"plan.power": {"PROBLEMS": ()}},
}
GIVES = {
    "bundle": [],
    "doctor": ("", True),
    "new": (Path("code"), Path("test")),
    "verify": pd.DataFrame({"verdict": ["reproduced"]}),
    "settings": {"settings.md": "text"},
    **{f"bench {name}": [{"ratio": 1.0}] for name in cli.commands["bench"].commands},
}
SHARED = {"settings", "config", "overrides"}  # of `with_job`


def commands(group: click.Group = cli, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def names_of(place: str) -> list[str]:
    """The parameters of the function `MODULE:NAME`, read and not run: its module may need minutes to import."""
    module, _, name = place.partition(":")
    tree = ast.parse(code._file(f"iapo_bench.{module}").read_text())
    (found,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    return [each.arg for each in (*found.args.args, *found.args.kwonlyargs)]


def sample_of(option: click.Parameter, number: int) -> tuple[tuple[str, ...], Any]:
    """What to type for an option, like for no other of its command, and what it means."""
    if isinstance(option.type, click.Choice):
        return (option.type.choices[-1],), option.type.choices[-1]
    if isinstance(option.type, click.Path):
        typed = tuple(f"{option.name}-{i}" for i in range(2 if option.multiple else 1))
        meant = tuple(map(Path, typed))
    elif isinstance(option.type, click.types.IntParamType | click.types.FloatParamType):
        typed = tuple(str(100 + 10 * number + i) for i in range(2 if option.multiple else 1))
        meant = tuple(map(type(option.type).convert, [option.type] * len(typed), typed, typed, typed))
    else:
        typed = meant = (f"{option.name}-said",)
    return typed, meant if option.multiple else meant[0]


COMMANDS = dict(commands())


def test_every_command_has_a_case():
    assert set(COMMANDS) == set(WORK)


@pytest.mark.parametrize("name", WORK)
def test_help_says_what_a_command_and_each_option_does(name):
    command = COMMANDS[name]
    shown = " ".join(command.get_help(click.Context(command, info_name=name)).split())
    assert len(command.get_short_help_str(limit=1000)) > 15
    for option in command.params:
        if isinstance(option, click.Option):
            assert len(option.help or "") > 5, option.name
            assert f"{option.opts[0]} " in shown
            assert option.help.split("\n")[0].split(";")[0] in shown


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Run a command with all of its options; what the function behind it got, by name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tier.yaml").write_text(yaml.safe_dump(CONTENT))
    (tmp_path / "x" / "summaries").mkdir(parents=True)
    (tmp_path / "x" / "summaries" / "row.json").touch()
    (tmp_path / "out-0").touch()

    def run(name: str, arguments: list[str]) -> dict[str, Any]:
        place, got = WORK[name][0], {}
        module, _, function = place.partition(":")
        fakes: dict[str, dict[str, Any]] = {module: {}, **ALSO.get(name, {})}

        def work(*args: Any, **named: Any) -> Any:
            got.update(dict(zip(names_of(place), args, strict=False)) | named)
            assert set(got) <= set(names_of(place))
            return GIVES.get(name)

        fakes[module] = {**fakes[module], function: work}
        for each, held in fakes.items():
            fake = ModuleType(f"iapo_bench.{each}")
            vars(fake).update(held)
            monkeypatch.setitem(sys.modules, fake.__name__, fake)
            parent, _, last = fake.__name__.rpartition(".")
            monkeypatch.setattr(import_module(parent), last, fake, raising=False)
        with pytest.raises(SystemExit) if name == "verify" else nullcontext():
            cli.main([*name.split(), *arguments], standalone_mode=False)
        return got

    return run


def typed(name: str) -> tuple[list[str], list[tuple[str, Any]]]:
    """The words after a command that give every option of it, and what must arrive where."""
    words, last, expected = [], [], []
    for number, option in enumerate(COMMANDS[name].params):
        if option.name in SHARED:
            continue
        said, meant = sample_of(option, number)
        said, place, meant = WORK[name][1].get(option.name, (said, option.name, meant))
        expected += [(place, meant)] if place else []
        if isinstance(option, click.Argument):
            last += said
        elif getattr(option, "is_flag", False):
            words += said
        else:
            words += [word for each in said for word in (option.opts[0], each)]
    shared = {option.name for option in COMMANDS[name].params} & {"config"}
    return [*(["--config", "tier.yaml"] if shared else []), *words, *last], expected


def find(got: dict[str, Any], place: str) -> Any:
    first, *rest = place.split(".")
    found = got[first]
    for part in rest:
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", WORK)
def test_every_option_reaches_the_work(call, name):
    words, expected = typed(name)
    got = call(name, words)
    for place, meant in expected:
        if place == "out" and place not in got:  # the command's own
            assert Path("out-0").read_text()
        else:
            assert find(got, place) == meant, place


# The options of a command that settle its job.
OF_THE_JOB = {
    "checkpoint": ["--method"],
    "train": ["--method", "--seed", "--trial"],
    "sample": ["--split", "--seed", "--n-samples"],
    "grade": ["--split"],
    "lm-eval": ["--task", "--limit", "--backend"],
    "metrics": ["--method"],
}


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, command in COMMANDS.items()
        if {"settings", "config"} <= {option.name for option in command.params}
    ],
)
def test_settings_of_a_file_are_all_of_a_job(call, name):
    words, _ = typed(name)
    job = call(name, words)[names_of(WORK[name][0])[0]]
    Path("settings.yaml").write_text(yaml.safe_dump({"name": "it", "job": job.model_dump(mode="json")}))
    refused = set()
    while True:
        try:
            again = call(name, [*words, "--settings", "settings.yaml"])[names_of(WORK[name][0])[0]]
            break
        except UserError as error:
            option = re.fullmatch(r"--settings holds all settings: leave out (--[a-z-]+)", str(error))[1]
            while option in words:
                del words[(at := words.index(option)) : at + 2]
            refused.add(option)
    assert again == job
    assert refused == {"--config", *OF_THE_JOB.get(name, ())}
    assert Path("ran/it.yaml").is_file()


def test_options_of_all_commands(monkeypatch, tmp_path, call):
    done = []
    monkeypatch.setitem(
        sys.modules, "torch", SimpleNamespace(set_num_threads=lambda count: done.append(("threads", count)))
    )
    monkeypatch.setattr(
        "iapo_bench.machine.gpu_lease.lease_gpus",
        lambda count, jobs_per_gpu: done.append((count, jobs_per_gpu)) or nullcontext(),
    )
    monkeypatch.setattr("iapo_bench.machine.gpu_lease.require_usable", lambda count: done.append(("usable", count)))
    monkeypatch.setattr("iapo_bench.cli.log.logged", lambda path, what: done.append((path, what)) or nullcontext())
    options = {"--threads": "3", "--gpus": "2", "--jobs-per-gpu": "4", "--log": "here"}
    assert {option.opts[0] for option in cli.params} == set(options)
    cli.main([*(part for pair in options.items() for part in pair), "settings"], standalone_mode=False)
    assert done == [("here", "settings"), (2, 4), ("usable", 2), ("threads", 3)]
