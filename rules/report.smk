# Tables, figures and pages: each has one module of iapo_bench/report, one rule and one command.

TRAINED = FLOW.trained
TIMED = {"base": RUNS["base"], **TRAINED}
ABLATED = list(
    dict.fromkeys(["base", *map(TIER.parent, TIER.ablations), *TIER.ablations])
)


rule metrics:
    """Measure one row: Pass@k, Length@k, Ratio@k over its training seeds."""
    input:
        settings=settings("metrics", "row"),
        grades=lambda wildcards: [
            f"{folder}/test/grades.parquet" for folder in FLOW.folders(wildcards.row)
        ],
        logs=measured_logs,
    output:
        summary=f"{WORK}/summaries/{{row}}.json",
        counts=f"{WORK}/summaries/{{row}}.parquet",
    wildcard_constraints:
        row="(?!base_)[^/]+",  # the controls have a rule of their own
    params:
        grades=each("grades", "grades"),
        seeds=measured_seeds,
        logs=each("log", "logs"),
    shell:
        run(
            "metrics --settings {input.settings} {params.grades} {params.seeds}"
            " {params.logs} --out {output.summary}",
        )


if TIER.also:

    use rule prepare as prepare_also with:
        input:
            settings=settings("prepare", "dataset"),
        output:
            directory(f"{WORK}/also/{{dataset}}/data"),

    use rule metrics as metrics_also with:
        input:
            settings=settings("metrics", "row", "dataset"),
            grades=lambda wildcards: [
                f"{folder}/also/{wildcards.dataset}/test/grades.parquet"
                for folder in FLOW.folders(wildcards.row)
            ],
            logs=measured_logs,
        output:
            summary=f"{WORK}/summaries/also/{{dataset}}/{{row}}.json",
            counts=f"{WORK}/summaries/also/{{dataset}}/{{row}}.parquet",


rule controls:
    """Shorten the base without training it."""
    input:
        settings=settings("controls"),
        grades=f"{WORK}/base/test/grades.parquet",
    output:
        expand(
            f"{WORK}/summaries/{{row}}.{{end}}",
            row=suite.CONTROLS,
            end=["json", "parquet"],
        ),
    params:
        out=subpath(output[0], parent=True),
    shell:
        run(
            "controls --settings {input.settings} --grades {input.grades} --out {params.out}"
        )


rule table:
    """Put all rows into one table and one figure."""
    input:
        **summaries(["base", *FLOW.methods, *FLOW.control_rows, *transferred()]),
        code=settings("table"),
        published="results/published/table1.csv",
    output:
        **table_files("table1", "Table 1"),
        **figure_files("accuracy_length", "Table 1"),
        provenance=f"{OUT}/table1.provenance.json",
    params:
        summaries=each("summary", "summaries"),
    shell:
        run(
            "table {params.summaries} --published {input.published} --out {output.csv}"
            " --figure {output.png}",
        )


rule ablation_table:
    """Compare the variants of methods with the methods that they vary."""
    input:
        **summaries(ABLATED),
        code=settings("ablations"),
    output:
        **table_files("ablations", "Ablations"),
        **figure_files("ablations", "Ablations"),
        provenance=f"{OUT}/ablations.provenance.json",
    params:
        summaries=each("summary", "summaries"),
    shell:
        run("ablations {params.summaries} --out {output.csv} --figure {output.png}")


rule ablations:
    """The effect of each part of a method."""
    input:
        rules.ablation_table.output.csv,


rule comparisons:
    """Compare every pair of rows, paired by problem."""
    input:
        **summaries(["base", *FLOW.methods, *transferred()]),
        code=settings("comparisons"),
    output:
        **table_files("comparisons", "Comparisons"),
        **figure_files("comparisons", "Comparisons"),
    params:
        summaries=each("summary", "summaries"),
    shell:
        run("comparisons {params.summaries} --out {output.csv} --figure {output.png}")


rule paired:
    """Draw each method's change from the base, paired by problem."""
    input:
        **summaries(["base", *FLOW.methods]),
        code=settings("paired"),
    output:
        **figure_files("paired", "Table 1"),
    params:
        summaries=each("summary", "summaries"),
    shell:
        run("paired {params.summaries} --figure {output.png}")


rule page:
    """Put verdict, figures and tables on one page."""
    input:
        code=settings("page"),
        table=f"{OUT}/table1.csv",
        made=[path for path in ALL if path != f"{OUT}/report.html"],
    output:
        reported("report", "html", "A verdict", "report"),
    shell:
        run("page {input.table} --out {output}")


rule frontier:
    """Test whether any method beats early stopping of the base."""
    input:
        **summaries(["base", *FLOW.methods]),
        code=settings("frontier"),
        base=f"{WORK}/base/test/grades.parquet",
    output:
        **table_files("frontier", "Early stopping"),
        **figure_files("frontier", "Early stopping"),
    params:
        summaries=each("summary", "summaries"),
    shell:
        run(
            "frontier {params.summaries} --base {input.base} --out {output.csv}"
            " --figure {output.png}",
        )


rule costs:
    """Tabulate the training cost, outcomes and efficiency scores of every row."""
    input:
        **summaries(["base", *FLOW.methods]),
        settings=settings("costs"),
        training=[f"{folder}/train.jsonl" for folder in TRAINED.values()],
    output:
        **table_files("costs", "Costs"),
    params:
        summaries=each("summary", "summaries"),
        runs=named(TRAINED),
    shell:
        run(
            "costs --settings {input.settings} {params.summaries} {params.runs} --out {output.csv}"
        )


rule wallclock:
    """Tabulate the seconds of every run by phase."""
    input:
        settings=settings("wallclock"),
        timing=[f"{folder}/test/timing.json" for folder in TIMED.values()],
        training=[f"{folder}/train.jsonl" for folder in TRAINED.values()],
    output:
        **table_files("wallclock", "Wall-clock"),
        **figure_files("wallclock", "Wall-clock"),
    params:
        runs=named(TIMED),
    shell:
        run(
            "wallclock --settings {input.settings} {params.runs} --out {output.csv}"
            " --figure {output.png}",
        )


rule curves:
    """Draw accuracy and length while training."""
    input:
        settings=settings("curves"),
        training=[f"{folder}/train.jsonl" for folder in TRAINED.values()],
    output:
        **figure_files("training", "Training"),
    params:
        runs=named(TRAINED),
    shell:
        run("curves --settings {input.settings} {params.runs} --figure {output.png}")


rule lm_eval_table:
    """Join the lm-eval scores of every run."""
    input:
        settings=settings("lm_eval_table"),
        scores=[f"{folder}/lm_eval/scores.json" for folder in RUNS.values()],
    output:
        **table_files("lm_eval", "lm-eval"),
    params:
        runs=named(RUNS),
    shell:
        run(
            "lm-eval-table --settings {input.settings} {params.runs} --out {output.csv}"
        )


rule time:
    """Time every row in turn, with the machine to itself."""
    input:
        **with_problems("timing"),
        models=[f"{folder}/model" for folder in RUNS.values()],
    output:
        **table_files("time", "Wall-clock"),
        rounds=f"{OUT}/time.rounds.csv",
        provenance=f"{OUT}/time.provenance.json",
    threads: 1024  # all cores of this machine, so that no other job runs beside it
    resources:
        **REQUESTS["train"].resources,
        cpus_per_task=REQUESTS["train"].cpus,  # instead of `threads`, on a cluster
        slurm_extra="--exclusive",
    params:
        runs=named(RUNS),
        base=lambda wildcards: f"{WORK}/base/model",
    shell:
        run(
            "time --settings {input.settings} {params.runs} --base {params.base}"
            " --data {input.data} --out {output.csv}",
            gpus=True,
        )
