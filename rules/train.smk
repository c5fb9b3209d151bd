# Training: one job a method and seed. Each is given its own slice of the settings, so that a change to one method, or a
# new one, reruns nothing else.


rule train:
    input:
        data=rules.prepare.output,
        base=rules.base.output,
    output:
        model=directory(f"{WORK}/{{method}}/seed{{seed}}/model"),
        log=f"{WORK}/{{method}}/seed{{seed}}/train.jsonl",
    log:
        f"{WORK}/logs/train/{{method}}-{{seed}}.log",
    benchmark:
        f"{WORK}/benchmarks/train/{{method}}-{{seed}}.tsv"
    conda:
        "../configs/environment.yaml"
    resources:
        settings=SETTINGS,
        gpu=TIER.gpus,
        mem_mb=TIER.job.mem_mb,
        runtime=TIER.job.runtime,
    params:
        slice=lambda wildcards: TIER.training_slice(wildcards.method),
        code=lambda wildcards: code_digest("train", TIER.parent(wildcards.method)),
        out=subpath(output.model, parent=True),
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench --threads {threads} --gpus {resources.gpu} train --method {wildcards.method}"
        " --base {input.base} --data {input.data} --seed {wildcards.seed} --out {params.out} 2>&1 | tee {log}"
