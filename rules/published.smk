# Published weights that the configuration names, fetched once. On a cluster the machine that submits does it: compute nodes
# seldom reach the internet.


rule fetch_published:
    output:
        file=f"{SETTINGS.published.folder}/{{published}}",
    log:
        f"{WORK}/logs/fetch_published/{{published}}.log",
    localrule: True
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        settings=published_settings,
        lock=published_lock,
    shell:
        """
        python -m published fetch {wildcards.published:q} \
            --settings {params.settings:q} \
            --lock {params.lock:q} \
            > {log:q} 2>&1
        """


onstart:
    record_published()
