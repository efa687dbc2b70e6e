# Artefacts -> one self-contained page.


rule build_report:
    input:
        artefacts=report_inputs,
    output:
        page=kept(f"{RESULTS}/report/index.html"),
    log:
        f"{WORK}/logs/build_report.log",
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        settings=report_settings,
        stores=results_place,
    shell:
        """
        python -m reporting.run \
            --results "$(dirname "$(dirname {output.page:q})")" \
            --stores {params.stores:q} \
            --config {params.settings:q} \
            --output {output.page:q} \
            > {log:q} 2>&1
        """
