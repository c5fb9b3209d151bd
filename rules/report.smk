# What people read: one artefact, one module of iapo_bench/report, one rule, one command.

TRAINED = FLOW.trained
TIMED = {"base": RUNS["base"], **TRAINED}
ABLATED = list(
    dict.fromkeys(["base", *map(TIER.parent, TIER.ablations), *TIER.ablations])
)


def summaries(rows):
    """Summaries of rows, and the counts by problem beside them."""
    return {
        "summaries": [f"{WORK}/summaries/{row}.json" for row in rows],
        "counts": [f"{WORK}/summaries/{row}.parquet" for row in rows],
    }


def named(runs):
    """The options of a command that say which runs there are."""
    return [f"--run {name}={folder}" for name, folder in runs.items()]


def stem(wildcards, output):
    """A figure's path without its ending."""
    return output.png.removesuffix(".png")


def each_summary(wildcards, input):
    """The options of a command that name the summaries."""
    return [f"--summary {path}" for path in input.summaries]


rule metrics:
    """Measure one row: Pass@k, Length@k, Ratio@k over its training seeds."""
    input:
        settings=lambda wildcards: FLOW.metrics(wildcards.row),
        grades=lambda wildcards: [
            f"{folder}/test/grades.parquet" for folder in FLOW.folders(wildcards.row)
        ],
        logs=lambda wildcards: [
            f"{folder}/train.jsonl"
            for folder in FLOW.folders(wildcards.row)
            if wildcards.row not in ["base", *TIER.measured]
        ],
    output:
        summary=f"{WORK}/summaries/{{row}}.json",
        counts=f"{WORK}/summaries/{{row}}.parquet",
    log:
        f"{WORK}/logs/metrics/{{row}}.log",
    benchmark:
        f"{WORK}/benchmarks/metrics/{{row}}.tsv"
    wildcard_constraints:
        row="(?!base_).+",  # the controls have a rule of their own
    conda:
        "../configs/environment.yaml"
    params:
        grades=lambda wildcards, input: [f"--grades {path}" for path in input.grades],
        seeds=lambda wildcards: [
            f"--train-seed {seed}"
            for seed in (
                [0] if wildcards.row == "base" else TIER.train_seeds(wildcards.row)
            )
        ],
        logs=lambda wildcards, input: [f"--log {path}" for path in input.logs],
    shell:
        RUN + "metrics --settings {input.settings} {params.grades} {params.seeds}"
        " {params.logs} --out {output.summary}"


rule controls:
    """Shorten the base without training it."""
    input:
        settings=lambda wildcards: FLOW.controls(),
        grades=f"{WORK}/base/test/grades.parquet",
    output:
        expand(
            f"{WORK}/summaries/{{row}}.{{end}}",
            row=suite.CONTROLS,
            end=["json", "parquet"],
        ),
    log:
        f"{WORK}/logs/controls.log",
    benchmark:
        f"{WORK}/benchmarks/controls.tsv"
    conda:
        "../configs/environment.yaml"
    params:
        out=f"{WORK}/summaries",
    shell:
        RUN
        + "controls --settings {input.settings} --grades {input.grades} --out {params.out}"


rule table:
    """Put all rows into one table and one figure."""
    input:
        **summaries(["base", *FLOW.methods, *FLOW.control_rows]),
        code=lambda wildcards: FLOW.artefact("table"),
        published="results/published/table1.csv",
    output:
        csv=report(f"{OUT}/table1.csv", category="Table 1"),
        markdown=report(f"{OUT}/table1.md", category="Table 1"),
        forms=multiext(f"{OUT}/table1", ".tex", ".html"),
        provenance=f"{OUT}/table1.provenance.json",
        png=report(f"{OUT}/figures/accuracy_length.png", category="Table 1"),
        svg=f"{OUT}/figures/accuracy_length.svg",
    log:
        f"{WORK}/logs/table.log",
    benchmark:
        f"{WORK}/benchmarks/table.tsv"
    conda:
        "../configs/environment.yaml"
    params:
        summaries=each_summary,
        stem=stem,
    shell:
        RUN
        + "table {params.summaries} --published {input.published} --out {output.csv}"
        " --figure {params.stem}"


rule ablation_table:
    """Put the variants of methods beside what they vary."""
    input:
        **summaries(ABLATED),
        code=lambda wildcards: FLOW.artefact("ablations"),
    output:
        csv=report(f"{OUT}/ablations.csv", category="Ablations"),
        markdown=report(f"{OUT}/ablations.md", category="Ablations"),
        forms=multiext(f"{OUT}/ablations", ".tex", ".html"),
        provenance=f"{OUT}/ablations.provenance.json",
        png=report(f"{OUT}/figures/ablations.png", category="Ablations"),
        svg=f"{OUT}/figures/ablations.svg",
    log:
        f"{WORK}/logs/ablations.log",
    benchmark:
        f"{WORK}/benchmarks/ablations.tsv"
    conda:
        "../configs/environment.yaml"
    params:
        summaries=each_summary,
        stem=stem,
    shell:
        RUN + "ablations {params.summaries} --out {output.csv} --figure {params.stem}"


rule ablations:
    """What each part of a method does."""
    input:
        rules.ablation_table.output.csv,


rule comparisons:
    """Compare every pair of rows, paired by problem."""
    input:
        **summaries(["base", *FLOW.methods]),
        code=lambda wildcards: FLOW.artefact("comparisons"),
    output:
        csv=report(f"{OUT}/comparisons.csv", category="Comparisons"),
        markdown=report(f"{OUT}/comparisons.md", category="Comparisons"),
        forms=multiext(f"{OUT}/comparisons", ".tex", ".html"),
        png=report(f"{OUT}/figures/comparisons.png", category="Comparisons"),
        svg=f"{OUT}/figures/comparisons.svg",
    log:
        f"{WORK}/logs/comparisons.log",
    benchmark:
        f"{WORK}/benchmarks/comparisons.tsv"
    conda:
        "../configs/environment.yaml"
    params:
        summaries=each_summary,
        stem=stem,
    shell:
        RUN + "comparisons {params.summaries} --out {output.csv} --figure {params.stem}"


rule paired:
    """Draw what each method changed in the base."""
    input:
        **summaries(["base", *FLOW.methods]),
        code=lambda wildcards: FLOW.artefact("paired"),
    output:
        png=report(f"{OUT}/figures/paired.png", category="Table 1"),
        svg=f"{OUT}/figures/paired.svg",
    log:
        f"{WORK}/logs/paired.log",
    benchmark:
        f"{WORK}/benchmarks/paired.tsv"
    conda:
        "../configs/environment.yaml"
    params:
        summaries=each_summary,
        stem=stem,
    shell:
        RUN + "paired {params.summaries} --figure {params.stem}"


rule page:
    """Put verdict, figures and tables on one page."""
    input:
        code=lambda wildcards: FLOW.artefact("page"),
        table=f"{OUT}/table1.csv",
        comparisons=f"{OUT}/comparisons.csv",
        frontier=f"{OUT}/frontier.csv",
        costs=f"{OUT}/costs.csv",
        paired=f"{OUT}/figures/paired.png",
        training=f"{OUT}/figures/training.png",
    output:
        report(f"{OUT}/report.html", category="A verdict"),
    log:
        f"{WORK}/logs/page.log",
    benchmark:
        f"{WORK}/benchmarks/page.tsv"
    conda:
        "../configs/environment.yaml"
    shell:
        RUN + "page {input.table} --out {output}"


rule frontier:
    """Say whether any method beats early stopping of the base."""
    input:
        **summaries(["base", *FLOW.methods]),
        code=lambda wildcards: FLOW.artefact("frontier"),
        base=f"{WORK}/base/test/grades.parquet",
    output:
        csv=report(f"{OUT}/frontier.csv", category="Early stopping"),
        markdown=report(f"{OUT}/frontier.md", category="Early stopping"),
        forms=multiext(f"{OUT}/frontier", ".tex", ".html"),
        png=report(f"{OUT}/figures/frontier.png", category="Early stopping"),
        svg=f"{OUT}/figures/frontier.svg",
    log:
        f"{WORK}/logs/frontier.log",
    benchmark:
        f"{WORK}/benchmarks/frontier.tsv"
    conda:
        "../configs/environment.yaml"
    params:
        summaries=each_summary,
        stem=stem,
    shell:
        RUN + "frontier {params.summaries} --base {input.base} --out {output.csv}"
        " --figure {params.stem}"


rule costs:
    """Say what each row cost and how it answered."""
    input:
        **summaries(["base", *FLOW.methods]),
        settings=lambda wildcards: FLOW.costs(),
        training=[f"{folder}/train.jsonl" for folder in TRAINED.values()],
    output:
        csv=report(f"{OUT}/costs.csv", category="Costs"),
        markdown=report(f"{OUT}/costs.md", category="Costs"),
        forms=multiext(f"{OUT}/costs", ".tex", ".html"),
    log:
        f"{WORK}/logs/costs.log",
    benchmark:
        f"{WORK}/benchmarks/costs.tsv"
    conda:
        "../configs/environment.yaml"
    params:
        summaries=each_summary,
        runs=named(TRAINED),
    shell:
        RUN
        + "costs --settings {input.settings} {params.summaries} {params.runs} --out {output.csv}"


rule wallclock:
    """Say where the time of every run went."""
    input:
        settings=lambda wildcards: FLOW.wallclock(),
        timing=[f"{folder}/test/timing.json" for folder in TIMED.values()],
        training=[f"{folder}/train.jsonl" for folder in TRAINED.values()],
    output:
        csv=report(f"{OUT}/wallclock.csv", category="Wall-clock"),
        png=report(f"{OUT}/figures/wallclock.png", category="Wall-clock"),
        svg=f"{OUT}/figures/wallclock.svg",
    log:
        f"{WORK}/logs/wallclock.log",
    benchmark:
        f"{WORK}/benchmarks/wallclock.tsv"
    conda:
        "../configs/environment.yaml"
    params:
        runs=named(TIMED),
        stem=stem,
    shell:
        RUN + "wallclock --settings {input.settings} {params.runs} --out {output.csv}"
        " --figure {params.stem}"


rule curves:
    """Draw accuracy and length while training."""
    input:
        code=lambda wildcards: FLOW.artefact("curves"),
        training=[f"{folder}/train.jsonl" for folder in TRAINED.values()],
    output:
        png=report(f"{OUT}/figures/training.png", category="Training"),
        svg=f"{OUT}/figures/training.svg",
    log:
        f"{WORK}/logs/curves.log",
    benchmark:
        f"{WORK}/benchmarks/curves.tsv"
    conda:
        "../configs/environment.yaml"
    params:
        runs=named(TRAINED),
        stem=stem,
    shell:
        RUN + "curves {params.runs} --figure {params.stem}"


rule lm_eval_table:
    """Join what lm-eval said of every run."""
    input:
        code=lambda wildcards: FLOW.artefact("lm_eval_table"),
        scores=[f"{folder}/lm_eval/scores.json" for folder in RUNS.values()],
    output:
        report(f"{OUT}/lm_eval.csv", category="lm-eval"),
    log:
        f"{WORK}/logs/lm_eval_table.log",
    benchmark:
        f"{WORK}/benchmarks/lm_eval_table.tsv"
    conda:
        "../configs/environment.yaml"
    params:
        runs=named(RUNS),
    shell:
        RUN + "lm-eval-table {params.runs} --out {output}"


rule time:
    """Time every row in turn, with the machine to itself."""
    input:
        settings=lambda wildcards: FLOW.timing(),
        data=ancient(rules.prepare.output),
        models=[f"{folder}/model" for folder in RUNS.values()],
    output:
        csv=report(f"{OUT}/time.csv", category="Wall-clock"),
        rounds=f"{OUT}/time.rounds.csv",
        provenance=f"{OUT}/time.provenance.json",
    log:
        f"{WORK}/logs/time.log",
    benchmark:
        f"{WORK}/benchmarks/time.tsv"
    conda:
        "../configs/environment.yaml"
    threads: 1024  # all there are: no other job beside it
    resources:
        **REQUESTS["train"].resources,
    params:
        runs=named(RUNS),
        base=f"{WORK}/base/model",
    shell:
        run_gpu("train") + "time --settings {input.settings} {params.runs} --base {params.base}"
        " --data {input.data} --out {output.csv}"
