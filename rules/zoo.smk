# Every method in one table, with the budget of the tier's table; methods beyond that table get the same search.


checkpoint zoo_choice:
    """Choose the settings of the methods beyond the table, with budgets equal to theirs."""
    input:
        settings=settings("tune_zoo"),
        base=f"{WORK}/base/validation/grades.parquet",
        trials=[
            f"{WORK}/{trial}/validation/grades.parquet"
            for trial in FLOW.trials_of(FLOW.untuned)
        ],
    output:
        FLOW.choices,
    params:
        trials=lambda wildcards: f"{WORK}/tune",
    shell:
        run(
            "tune --settings {input.settings} --trials {params.trials}"
            " --base {input.base} --out {output}",
        )


use rule table as zoo_table with:
    input:
        summaries=zoo_files("json"),
        counts=zoo_files("parquet"),
        code=settings("table"),
        published="results/published/table1.csv",
    output:
        **table_files("zoo", "Zoo"),
        **figure_files("zoo", "Zoo"),
        provenance=f"{OUT}/zoo.provenance.json",


use rule comparisons as zoo_comparisons with:
    input:
        summaries=zoo_files("json"),
        counts=zoo_files("parquet"),
        code=settings("comparisons"),
    output:
        **table_files("zoo_comparisons", "Zoo"),
        **figure_files("zoo_comparisons", "Zoo"),


rule zoo:
    """Every method, with equal budgets, in a separate table."""
    input:
        rules.zoo_table.output.csv,
        rules.zoo_comparisons.output.csv,
