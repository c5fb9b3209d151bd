# Roles and scores of tokens: for the micro world only, where the role of every token is known.


rule token_roles:
    """Score the tokens of a run's own completions and note the role of each."""
    input:
        **with_problems("token_roles", "run"),
        model=f"{WORK}/{{run}}/model",
        samples=f"{WORK}/{{run}}/test/samples.parquet",
    output:
        f"{WORK}/{{run}}/test/token_roles.parquet",
    threads: REQUESTS["sample"].cpus
    resources:
        **REQUESTS["sample"].resources,
    shell:
        run(
            "token-roles --settings {input.settings} --model {input.model}"
            " --samples {input.samples} --data {input.data} --out {output}",
            gpus=True,
        )


rule calibration:
    """Compare the entropy of the base's early answers with its true uncertainty."""
    input:
        **with_problems("calibration"),
        model=f"{WORK}/base/model",
        samples=f"{WORK}/base/test/samples.parquet",
    output:
        **figure_files("calibration", "Informativeness"),
        **table_files("calibration", "Informativeness"),
    threads: REQUESTS["sample"].cpus
    resources:
        **REQUESTS["sample"].resources,
    shell:
        run(
            "calibration --settings {input.settings} --model {input.model}"
            " --samples {input.samples} --data {input.data}"
            " --out {output.csv} --figure {output.png}",
            gpus=True,
        )


rule role_tables:
    """Measure which scores rank needed tokens first, and which roles each method removed."""
    input:
        settings=settings("role_tables"),
        tokens=[f"{folder}/test/token_roles.parquet" for folder in RUNS.values()],
        samples=[f"{folder}/test/samples.parquet" for folder in RUNS.values()],
    output:
        **{
            f"roles_{form}": path
            for form, path in table_files(
                "roles", "Informativeness", caption="informativeness"
            ).items()
        },
        **table_files("informativeness", "Informativeness"),
        **figure_files("informativeness", "Informativeness"),
    params:
        runs=named(RUNS),
    shell:
        run(
            "role-tables --settings {input.settings} {params.runs} --out {output.csv}"
            " --roles {output.roles_csv} --figure {output.png}",
        )
