# Artefacts -> one self-contained page.


rule explain_gallery:
    "Why the images that the report's gallery shows match its sentences: by regions, segments and words."
    input:
        artefacts=PLAN.why_inputs,
    output:
        why=kept(layout.why(RESULTS)),
    log:
        layout.log(WORK, "explain_gallery"),
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        settings=PLAN.why_settings,
        stores=PLAN.results_folder,
    message:
        "Explains the matches in the report's gallery"
    shell:
        """
        python -m reporting.why \
            --results "$(dirname "$(dirname {output.why:q})")" \
            --stores {params.stores:q} \
            --config {params.settings:q} \
            --output {output.why:q} \
            --device cpu \
            --threads {threads} \
            > {log:q} 2>&1
        """


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
        names=PLAN.names_contents,
        stores=PLAN.results_folder,
    message:
        "Writes the report"
    shell:
        """
        python -m reporting.run \
            --results "$(dirname "$(dirname {output.page:q})")" \
            --stores {params.stores:q} \
            --config {params.settings:q} \
            --output {output.page:q} \
            > {log:q} 2>&1
        """


onsuccess:
    note_made()
    show_notes(WORK, STARTED)
    if "build_report" in {job.rule.name for job in workflow.dag.jobs}:
        PLAN.show_results()


onerror:
    note_made()
    show_notes(WORK, STARTED)
    show_failures(log, WORK, STARTED)
