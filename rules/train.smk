# Index + stores -> one run folder. The resume state lies beside it and is no declared output: Snakemake would delete it when a
# job fails, which is when it is needed.


rule train_model:
    input:
        unpack(run_inputs),
    output:
        model=f"{RESULTS}/runs/{{run}}/model.safetensors",
        config=f"{RESULTS}/runs/{{run}}/config.json",
        history=f"{RESULTS}/runs/{{run}}/history.csv",
    log:
        f"{RESULTS}/logs/train_model/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train_model/{{run}}.tsv"
    conda:
        "../envs/pipeline.yaml"
    threads: training_threads
    resources:
        gpu=GPUS_PER_JOB,
        processes=1,
        launcher="",
    params:
        settings=run_settings,
        state=f"{RESULTS}/runs/{{run}}.state",
    shell:
        """
        {resources.launcher} python -m model.train \
            --run-name {wildcards.run:q} \
            --images {input.images:q} \
            --captions {input.captions:q} \
            --visual "$(dirname {input.visual:q})" \
            --panoptic "$(dirname {input.panoptic:q})" \
            --settings {params.settings:q} \
            --output "$(dirname {output.model:q})" \
            --state {params.state:q} \
            --threads {threads} \
            --processes {resources.processes} \
            > {log:q} 2>&1
        """
