# The base and every trained model through lm-eval: greedy on our test problems, and the tier's standard tasks.


rule lm_eval:
    input:
        data=rules.prepare.output,
        model=f"{WORK}/{{run}}/model",
        task=[f"configs/lm_eval/{TIER.world.name}.yaml", "configs/lm_eval/_problems"],
    output:
        scores=f"{WORK}/{{run}}/lm_eval/scores.json",
        results=f"{WORK}/{{run}}/lm_eval/results.parquet",
    log:
        f"{WORK}/logs/lm_eval/{{run}}.log",
    benchmark:
        f"{WORK}/benchmarks/lm_eval/{{run}}.tsv"
    conda:
        "../configs/environment.yaml"
    resources:
        settings=SETTINGS,
        gpu=min(TIER.gpus, 1),
        mem_mb=TIER.job.mem_mb,
        runtime=TIER.job.runtime,
    params:
        settings=TIER.lm_eval.model_dump(),
        evaluate=TIER.evaluate.model_dump(include={"max_tokens", "problems"}),
        code=code_digest("lm_eval"),
        out=subpath(output.scores, parent=True),
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench --threads {threads} --gpus {resources.gpu} lm-eval --model {input.model} --data {input.data}"
        " --out {params.out} 2>&1 | tee {log}"


rule lm_eval_table:
    input:
        scores=[f"{folder}/lm_eval/scores.json" for folder in RUNS.values()],
    output:
        report(f"{OUT}/lm_eval.csv", category="lm-eval"),
    log:
        f"{WORK}/logs/lm_eval_table.log",
    benchmark:
        f"{WORK}/benchmarks/lm_eval_table.tsv"
    conda:
        "../configs/environment.yaml"
    resources:
        settings=SETTINGS,
    params:
        runs=[f"--run {name}={folder}" for name, folder in RUNS.items()],
        code=code_digest("lm_eval_table"),
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench lm-eval-table {params.runs} --out {output} 2>&1 | tee {log}"
