# What people read.

TRAINED = {name: folder for name, folder in RUNS.items() if name != "base"}
FOLDERS = {"base": [f"{WORK}/base"]} | {
    row: [f"{WORK}/{row}/seed{seed}" for seed in TRAIN_SEEDS]
    for row in [*METHODS, *TIER.ablations]
}
SUMMARIES = [f"{WORK}/summaries/{row}.json" for row in ["base", *METHODS]]


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


rule table:
    input:
        summaries=SUMMARIES,
        counts=[path.replace(".json", ".parquet") for path in SUMMARIES],
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
