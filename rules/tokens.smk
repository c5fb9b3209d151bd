# What tokens are for, and what scores say of them: the micro world only, where the role of every token is known.


rule token_roles:
    """Score the tokens of a run's own completions, beside what each is for."""
    input:
        settings=lambda wildcards: FLOW.token_roles(wildcards.run),
        data=ancient(rules.prepare.output),
        model=f"{WORK}/{{run}}/model",
        samples=f"{WORK}/{{run}}/test/samples.parquet",
    output:
        f"{WORK}/{{run}}/test/token_roles.parquet",
    log:
        f"{WORK}/logs/token_roles/{{run}}.log",
    benchmark:
        f"{WORK}/benchmarks/token_roles/{{run}}.tsv"
    conda:
        "../configs/environment.yaml"
    threads: REQUESTS["sample"].cpus
    resources:
        **REQUESTS["sample"].resources,
    shell:
        run_gpu("sample")
        + "token-roles --settings {input.settings} --model {input.model}"
        " --samples {input.samples} --data {input.data} --out {output}"


rule role_tables:
    """Say which scores know a needed token, and which roles each method removed."""
    input:
        settings=lambda wildcards: FLOW.role_tables(),
        tokens=[f"{folder}/test/token_roles.parquet" for folder in RUNS.values()],
        samples=[f"{folder}/test/samples.parquet" for folder in RUNS.values()],
    output:
        csv=report(f"{OUT}/informativeness.csv", category="Informativeness"),
        roles=report(f"{OUT}/roles.csv", category="Informativeness"),
        png=report(f"{OUT}/figures/informativeness.png", category="Informativeness"),
        svg=f"{OUT}/figures/informativeness.svg",
    log:
        f"{WORK}/logs/role_tables.log",
    benchmark:
        f"{WORK}/benchmarks/role_tables.tsv"
    conda:
        "../configs/environment.yaml"
    params:
        runs=named(RUNS),
        stem=stem,
    shell:
        RUN
        + "role-tables --settings {input.settings} {params.runs} --out {output.csv}"
        " --roles {output.roles} --figure {params.stem}"
