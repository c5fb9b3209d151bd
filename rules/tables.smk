# What people read.

TRAINED = {name: folder for name, folder in RUNS.items() if name != "base"}
FOLDERS = {"base": [f"{WORK}/base"]} | {
    row: [f"{WORK}/{row}/seed{seed}" for seed in TRAIN_SEEDS]
    for row in [*METHODS, *TIER.ablations]
}
SUMMARIES = [f"{WORK}/summaries/{row}.json" for row in ["base", *METHODS]]
CONTROLS = [f"{WORK}/summaries/{row}.json" for row in ["base_cut", "base_shortest"]]
if TIER.evaluate.n_samples < 4:
    CONTROLS = []  # no shortest of four


rule metrics:
    input:
        grades=lambda wildcards: [
            f"{folder}/test/grades.parquet" for folder in FOLDERS[wildcards.row]
        ],
    output:
        summary=f"{WORK}/summaries/{{row}}.json",
        counts=f"{WORK}/summaries/{{row}}.parquet",
    log:
        f"{WORK}/logs/metrics/{{row}}.log",
    benchmark:
        f"{WORK}/benchmarks/metrics/{{row}}.tsv"
    wildcard_constraints:
        row="(?!base_)[a-z][a-z0-9_]*",  # the controls have a rule of their own
    conda:
        "../configs/environment.yaml"
    resources:
        settings=SETTINGS,
    params:
        grades=lambda wildcards, input: [f"--grades {path}" for path in input.grades],
        seeds=lambda wildcards: [
            f"--train-seed {seed}"
            for seed in ([0] if wildcards.row == "base" else TRAIN_SEEDS)
        ],
        evaluate=TIER.evaluate.model_dump(),
        labels=[TIER.model.name, TIER.world.name, TIER.selection],
        code=code_digest("metrics"),
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench metrics --method {wildcards.row} {params.grades} {params.seeds} --out {output.summary} 2>&1 | tee {log}"


rule controls:
    input:
        grades=f"{WORK}/base/test/grades.parquet",
    output:
        summaries=expand(
            f"{WORK}/summaries/{{row}}.{{end}}",
            row=["base_cut", "base_shortest"],
            end=["json", "parquet"],
        ),
    log:
        f"{WORK}/logs/controls.log",
    benchmark:
        f"{WORK}/benchmarks/controls.tsv"
    conda:
        "../configs/environment.yaml"
    resources:
        settings=SETTINGS,
    params:
        evaluate=TIER.evaluate.model_dump(),
        labels=[TIER.model.name, TIER.world.name],
        code=code_digest("controls"),
        out=f"{WORK}/summaries",
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench controls --grades {input.grades} --out {params.out} 2>&1 | tee {log}"


rule table:
    input:
        summaries=SUMMARIES + CONTROLS,
        counts=[path.replace(".json", ".parquet") for path in SUMMARIES + CONTROLS],
        published="results/published/table1.csv",
    output:
        csv=report(f"{OUT}/table1.csv", category="Table 1"),
        forms=multiext(f"{OUT}/table1", ".md", ".tex", ".html"),
        provenance=f"{OUT}/table1.provenance.json",
        png=report(f"{OUT}/figures/accuracy_length.png", category="Table 1"),
        svg=f"{OUT}/figures/accuracy_length.svg",
    log:
        f"{WORK}/logs/table.log",
    benchmark:
        f"{WORK}/benchmarks/table.tsv"
    conda:
        "../configs/environment.yaml"
    resources:
        settings=SETTINGS,
    params:
        summaries=lambda wildcards, input: [
            f"--summary {path}" for path in input.summaries
        ],
        code=code_digest("tables"),
        stem=lambda wildcards, output: output.png.removesuffix(".png"),
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench table {params.summaries} --published {input.published} --out {output.csv}"
        " --figure {params.stem} 2>&1 | tee {log}"


rule comparisons:
    input:
        summaries=SUMMARIES,
        counts=[path.replace(".json", ".parquet") for path in SUMMARIES],
    output:
        csv=report(f"{OUT}/comparisons.csv", category="Comparisons"),
        forms=multiext(f"{OUT}/comparisons", ".md", ".tex", ".html"),
        png=report(f"{OUT}/figures/comparisons.png", category="Comparisons"),
        svg=f"{OUT}/figures/comparisons.svg",
    log:
        f"{WORK}/logs/comparisons.log",
    benchmark:
        f"{WORK}/benchmarks/comparisons.tsv"
    conda:
        "../configs/environment.yaml"
    resources:
        settings=SETTINGS,
    params:
        summaries=lambda wildcards, input: [
            f"--summary {path}" for path in input.summaries
        ],
        code=code_digest("comparisons"),
        stem=lambda wildcards, output: output.png.removesuffix(".png"),
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench comparisons {params.summaries} --out {output.csv}"
        " --figure {params.stem} 2>&1 | tee {log}"


rule frontier:
    input:
        summaries=SUMMARIES,
        counts=[path.replace(".json", ".parquet") for path in SUMMARIES],
        base=f"{WORK}/base/test/grades.parquet",
    output:
        csv=report(f"{OUT}/frontier.csv", category="Early stopping"),
        forms=multiext(f"{OUT}/frontier", ".md", ".tex", ".html"),
        png=report(f"{OUT}/figures/frontier.png", category="Early stopping"),
        svg=f"{OUT}/figures/frontier.svg",
    log:
        f"{WORK}/logs/frontier.log",
    benchmark:
        f"{WORK}/benchmarks/frontier.tsv"
    conda:
        "../configs/environment.yaml"
    resources:
        settings=SETTINGS,
    params:
        summaries=lambda wildcards, input: [
            f"--summary {path}" for path in input.summaries
        ],
        code=code_digest("frontier"),
        stem=lambda wildcards, output: output.png.removesuffix(".png"),
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench frontier {params.summaries} --base {input.base} --out {output.csv}"
        " --figure {params.stem} 2>&1 | tee {log}"


rule costs:
    input:
        summaries=SUMMARIES,
        counts=[path.replace(".json", ".parquet") for path in SUMMARIES],
        training=[f"{folder}/train.jsonl" for folder in TRAINED.values()],
    output:
        csv=report(f"{OUT}/costs.csv", category="Costs"),
        forms=multiext(f"{OUT}/costs", ".md", ".tex", ".html"),
    log:
        f"{WORK}/logs/costs.log",
    benchmark:
        f"{WORK}/benchmarks/costs.tsv"
    conda:
        "../configs/environment.yaml"
    resources:
        settings=SETTINGS,
    params:
        summaries=lambda wildcards, input: [
            f"--summary {path}" for path in input.summaries
        ],
        runs=[f"--run {name}={folder}" for name, folder in TRAINED.items()],
        budget=[TIER.tuned, TIER.train.completions],
        code=code_digest("costs"),
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench costs {params.summaries} {params.runs} --out {output.csv} 2>&1 | tee {log}"


rule wallclock:
    input:
        timing=[f"{folder}/test/timing.json" for folder in RUNS.values()],
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
    resources:
        settings=SETTINGS,
    params:
        runs=[f"--run {name}={folder}" for name, folder in RUNS.items()],
        code=code_digest("tables"),
        stem=lambda wildcards, output: output.png.removesuffix(".png"),
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench wallclock {params.runs} --out {output.csv} --figure {params.stem} 2>&1 | tee {log}"


rule curves:
    input:
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
    resources:
        settings=SETTINGS,
    params:
        runs=[f"--run {name}={folder}" for name, folder in TRAINED.items()],
        code=code_digest("tables"),
        stem=lambda wildcards, output: output.png.removesuffix(".png"),
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench curves {params.runs} --figure {params.stem} 2>&1 | tee {log}"
