# Images of a dataset x runs -> what is needed to find them by a sentence: `python -m search ask | serve`.


rule build_search:
    "Embeddings of all images, and of captions where there are any, by every run of a search; thumbnails. Only what is new."
    input:
        unpack(PLAN.search_inputs),
    output:
        search=kept(layout.search(RESULTS)),
    log:
        layout.log(WORK, "build_search/{search}"),
    benchmark:
        layout.benchmark(WORK, "build_search/{search}")
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    resources:
        gpu=GPUS_PER_JOB,
    params:
        dataset=PLAN.ask("search.{search}.dataset"),
        runs=PLAN.search_runs,
        captions=PLAN.search_flags,
        place=PLAN.search_place,
    message:
        "Makes {wildcards.search} searchable"
    shell:
        """
        python -m search build \
            --dataset {params.dataset:q} \
            --images {input.images:q} \
            --captions {input.captions:q} \
            --runs {params.runs:q} \
            {params.captions:q} \
            --place {params.place:q} \
            --output {output.search:q} \
            --threads {threads} \
            > {log:q} 2>&1
        """
