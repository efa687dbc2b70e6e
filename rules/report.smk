# Artefacts -> one self-contained page.


rule build_report:
    "The page: what was made, of what, how good it is and how long it took."
    input:
        artefacts=PLAN.report_inputs,
    output:
        page=kept(layout.report(RESULTS)),
    log:
        layout.log(WORK, "build_report"),
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        settings=PLAN.report_settings,
        stores=PLAN.results_folder,
    shell:
        """
        python -m reporting.run \
            --results "$(dirname "$(dirname {output.page:q})")" \
            --stores {params.stores:q} \
            --config {params.settings:q} \
            --output {output.page:q} \
            > {log:q} 2>&1
        """
