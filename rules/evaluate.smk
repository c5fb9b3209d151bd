# Sampling needs the accelerator; grading and measuring never do.


rule sample:
    input:
        data=rules.prepare.output,
        model=f"{WORK}/{{run}}/model",
    output:
        samples=f"{WORK}/{{run}}/test/samples.parquet",
        timing=f"{WORK}/{{run}}/test/timing.json",
    log:
        f"{WORK}/logs/sample/{{run}}.log",
    benchmark:
        f"{WORK}/benchmarks/sample/{{run}}.tsv"
    conda:
        "../configs/environment.yaml"
    resources:
        settings=SETTINGS,
        gpu=min(TIER.gpus, 1),
        mem_mb=TIER.job.mem_mb,
        runtime=TIER.job.runtime,
    params:
        evaluate=TIER.evaluate.model_dump(exclude={"ks"}),
        code=code_digest("sample"),
        out=subpath(output.samples, parent=True),
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench --threads {threads} --gpus {resources.gpu} sample --model {input.model} --data {input.data}"
        " --split test --out {params.out} 2>&1 | tee {log}"


rule grade:
    input:
        data=rules.prepare.output,
        samples=rules.sample.output.samples,
    output:
        f"{WORK}/{{run}}/test/grades.parquet",
    log:
        f"{WORK}/logs/grade/{{run}}.log",
    benchmark:
        f"{WORK}/benchmarks/grade/{{run}}.tsv"
    conda:
        "../configs/environment.yaml"
    resources:
        settings=SETTINGS,
    params:
        code=code_digest("grade"),
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench grade --samples {input.samples} --data {input.data} --split test"
        " --out {output} 2>&1 | tee {log}"
