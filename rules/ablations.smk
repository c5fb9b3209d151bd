# What each part of a method does: its ablations, and a grid over two of its options on the validation split.

ABLATED = list(
    dict.fromkeys(["base", *map(TIER.parent, TIER.ablations), *TIER.ablations])
)
POINTS = TIER.sensitivity.points() if TIER.sensitivity and TIER.tune else []


rule ablation_table:
    input:
        summaries=[f"{WORK}/summaries/{row}.json" for row in ABLATED],
        counts=[f"{WORK}/summaries/{row}.parquet" for row in ABLATED],
    output:
        csv=report(f"{OUT}/ablations.csv", category="Ablations"),
        forms=multiext(f"{OUT}/ablations", ".md", ".tex", ".html"),
        provenance=f"{OUT}/ablations.provenance.json",
        png=report(f"{OUT}/figures/ablations.png", category="Ablations"),
        svg=f"{OUT}/figures/ablations.svg",
    log:
        f"{WORK}/logs/ablations.log",
    benchmark:
        f"{WORK}/benchmarks/ablations.tsv"
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
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench table {params.summaries} --out {output.csv} --figure {params.stem} 2>&1 | tee {log}"


rule ablations:
    input:
        rules.ablation_table.output.csv,


rule sensitivity_train:
    input:
        data=rules.prepare.output,
        base=rules.base.output,
    output:
        model=directory(f"{WORK}/sensitivity/point{{point}}/model"),
        log=f"{WORK}/sensitivity/point{{point}}/train.jsonl",
    log:
        f"{WORK}/logs/sensitivity/{{point}}.log",
    benchmark:
        f"{WORK}/benchmarks/sensitivity_train/{{point}}.tsv"
    conda:
        "../configs/environment.yaml"
    resources:
        settings=SETTINGS,
        gpu=TIER.gpus,
        mem_mb=TIER.job.mem_mb,
        runtime=TIER.job.runtime,
    params:
        options=lambda wildcards: [
            f"--set methods.{TIER.sensitivity.method}.options.{option}={value}"
            for option, value in POINTS[int(wildcards.point)].items()
        ],
        slice=lambda wildcards: TIER.training_slice(TIER.sensitivity.method),
        code=lambda wildcards: code_digest(
            "train", TIER.parent(TIER.sensitivity.method)
        ),
        method=TIER.sensitivity.method if TIER.sensitivity else "",
        seed=TIER.tune.seed if TIER.tune else 0,
        out=subpath(output.model, parent=True),
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench --threads {threads} --gpus {resources.gpu} train --method {params.method} {params.options}"
        " --base {input.base} --data {input.data} --seed {params.seed} --out {params.out} 2>&1 | tee {log}"


rule sensitivity_table:
    input:
        base=f"{WORK}/base/validation/grades.parquet",
        grades=[
            f"{WORK}/sensitivity/point{i}/validation/grades.parquet"
            for i in range(len(POINTS))
        ],
    output:
        csv=report(f"{OUT}/sensitivity.csv", category="Sensitivity"),
        png=report(f"{OUT}/figures/sensitivity.png", category="Sensitivity"),
        svg=f"{OUT}/figures/sensitivity.svg",
    log:
        f"{WORK}/logs/sensitivity.log",
    benchmark:
        f"{WORK}/benchmarks/sensitivity.tsv"
    conda:
        "../configs/environment.yaml"
    resources:
        settings=SETTINGS,
    params:
        grades=lambda wildcards, input: [f"--grades {path}" for path in input.grades],
        tune=TIER.tune.model_dump() if TIER.tune else {},
        grid=TIER.sensitivity.model_dump() if TIER.sensitivity else {},
        code=[code_digest("metrics"), code_digest("tables")],
        stem=lambda wildcards, output: output.png.removesuffix(".png"),
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench sensitivity --base {input.base} {params.grades} --out {output.csv}"
        " --figure {params.stem} 2>&1 | tee {log}"


rule sensitivity:
    input:
        rules.sensitivity_table.output.csv,
