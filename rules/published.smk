# Published weights that the configuration names, fetched once. On a cluster the machine that submits does it: compute nodes
# seldom reach the internet.


rule fetch_published:
    "One file of published weights, from its publisher or a mirror, checked against its digest."
    output:
        file=f"{SETTINGS.published.folder}/{{published}}",
    log:
        layout.log(WORK, "fetch_published/{published}"),
    localrule: True
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        settings=PLAN.published_settings,
        lock=PLAN.published_lock,
    message:
        "Fetches {wildcards.published}"
    shell:
        """
        python -m published fetch {wildcards.published:q} \
            --settings {params.settings:q} \
            --lock {params.lock:q} \
            > {log:q} 2>&1
        """


onstart:
    end_jobs_on(
        signal.SIGTERM
    )  # Snakemake, which has set its own by now, would wait for them
    checked(PLAN.record_published)
    PLAN.remember_made()
    print(
        f"progress of long jobs: python -m core.progress --results {shlex.quote(WORK)}",
        file=sys.stderr,
    )
