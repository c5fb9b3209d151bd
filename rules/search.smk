# Hyperparameters: the search and the grid, both on the validation split, each run with the table's budget. The choice
# and its evidence go to configs/tuned/, which the table reads.


rule tune:
    """Choose every method's settings on the validation split, with equal budgets."""
    input:
        settings=settings("tune"),
        base=f"{WORK}/base/validation/grades.parquet",
        trials=[f"{WORK}/{trial}/validation/grades.parquet" for trial in FLOW.trials],
    params:
        trials=lambda wildcards: f"{WORK}/tune",
        out=os.path.relpath(f"{workflow.basedir}/configs/tuned/{TIER.choices}.yaml"),
    shell:
        run(
            "tune --settings {input.settings} --trials {params.trials}"
            " --base {input.base} --out {params.out}",
        )


rule sensitivity_table:
    """Show how two options of a method, on a grid, move accuracy and length."""
    input:
        settings=settings("sensitivity"),
        base=f"{WORK}/base/validation/grades.parquet",
        grades=[f"{WORK}/{point}/validation/grades.parquet" for point in FLOW.points],
    output:
        **table_files("sensitivity", "Sensitivity"),
        **figure_files("sensitivity", "Sensitivity"),
    params:
        grades=each("grades", "grades"),
    shell:
        run(
            "sensitivity --settings {input.settings} --base {input.base} {params.grades}"
            " --out {output.csv} --figure {output.png}",
        )


rule sensitivity:
    """The effect of two options of a method, on the validation split."""
    input:
        rules.sensitivity_table.output.csv,
