# Index + stores -> one run folder. The resume state lies beside it and is no declared output: Snakemake would delete it when a
# job fails, which is when it is needed.


rule train_model:
    "One run: weights, configuration, history. Goes on from its last saved step."
    input:
        unpack(PLAN.run_inputs),
    output:
        model=kept(layout.run_file(RESULTS, layout.WEIGHTS)),
        config=kept(layout.run_file(RESULTS, layout.CONFIG)),
        vocabulary=kept(layout.run_file(RESULTS, layout.VOCABULARY)),
        history=kept(layout.run_file(RESULTS, layout.HISTORY)),
    log:
        layout.log(WORK, "train_model/{run}"),
    benchmark:
        layout.benchmark(WORK, "train_model/{run}")
    wildcard_constraints:
        run=PLAN.trained,
    conda:
        "../envs/pipeline.yaml"
    threads: PLAN.training_threads
    resources:
        gpu=GPUS_PER_JOB,
        processes=1,
        launcher="",
    params:
        settings=PLAN.run_settings,
        recipe=PLAN.run_recipe,
        contents=PLAN.run_contents,
        stores=PLAN.run_stores,
        state=layout.run_state(WORK),
    message:
        "Trains run {wildcards.run}"
    shell:
        """
        {resources.launcher} python -m model.train \
            --run-name {wildcards.run:q} \
            --images {input.images:q} \
            --captions {input.captions:q} \
            {params.stores:q} \
            --settings {params.settings:q} \
            --output "$(dirname {output.model:q})" \
            --state {params.state:q} \
            --threads {threads} \
            --processes {resources.processes} \
            > {log:q} 2>&1
        """


rule import_run:
    "A run of a checkpoint of authors: weights, configuration, vocabulary; nothing is trained."
    input:
        unpack(PLAN.checkpoint_inputs),
    output:
        model=kept(layout.run_file(RESULTS, layout.WEIGHTS)),
        config=kept(layout.run_file(RESULTS, layout.CONFIG)),
        vocabulary=kept(layout.run_file(RESULTS, layout.VOCABULARY)),
    log:
        layout.log(WORK, "import_run/{run}"),
    wildcard_constraints:
        run=PLAN.imported_runs,
    # What is wrong with a file is told before hours are spent on what it would read.
    priority: 1
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        flags=PLAN.checkpoint_flags,
        reads=PLAN.checkpoint_reads,
    message:
        "Reads the checkpoint of run {wildcards.run}"
    shell:
        """
        python -m model.checkpoint import \
            {input.checkpoint:q} \
            "$(dirname {output.model:q})" \
            {params.flags:q} \
            {params.reads:q} \
            --by-workflow \
            > {log:q} 2>&1
        """
