# What can be asked for by name beside `all`: `snakemake --cores N TARGET`.


rule index:
    "Images and captions of every dataset, as tables."
    input:
        PLAN.all_indexes(),


rule regions:
    "Region features of every dataset that can have them."
    input:
        PLAN.all_stores("regions"),


rule grids:
    "Grid features of every dataset that can have them."
    input:
        PLAN.all_stores("grids"),


rule panoptic:
    "Panoptic segmentations of every dataset that can have them."
    input:
        PLAN.all_stores("panoptic"),


rule features:
    "All features of every dataset, whether a run reads them or not."
    input:
        PLAN.all_stores(*FEATURES),


rule train:
    "Every run."
    input:
        PLAN.all_models(),


rule evaluate:
    "Every run and ensemble on every test set, and the tables."
    input:
        PLAN.all_metrics(),
        PLAN.all_tables(),


rule search:
    "Everything that can be searched by a sentence."
    input:
        PLAN.all_searches(),


rule report:
    "The report, and all it shows."
    input:
        kept(layout.report(RESULTS)),


rule export:
    "Features in use, as the files that other programs read."
    input:
        PLAN.all_exports(),


rule verify:
    "Reads every store in use from end to end, whenever it is asked for."
    input:
        PLAN.all_verified(),


rule check:
    "Reads the head of every input, tells all faults at once, and says what would run. Computes nothing."
    log:
        layout.log(WORK, "check"),
    localrule: True
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        settings=PLAN.check_configuration,
    message:
        "Checks all that can be checked without computing"
    shell:
        """
        python -m rules.check --config {params.settings:q} --plan > {log:q} 2>&1
        cat {log:q}
        """
