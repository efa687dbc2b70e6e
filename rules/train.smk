# Index + stores -> one run folder. The resume state lies beside it and is no declared output: Snakemake would delete it when a
# job fails, which is when it is needed.


rule train_model:
    input:
        unpack(run_inputs),
    output:
        model=kept(f"{RESULTS}/runs/{{run}}/model.safetensors"),
        config=kept(f"{RESULTS}/runs/{{run}}/config.json"),
        vocabulary=kept(f"{RESULTS}/runs/{{run}}/vocab.txt"),
        history=kept(f"{RESULTS}/runs/{{run}}/history.csv"),
    log:
        f"{WORK}/logs/train_model/{{run}}.log",
    benchmark:
        f"{WORK}/benchmarks/train_model/{{run}}.tsv"
    conda:
        "../envs/pipeline.yaml"
    threads: training_threads
    resources:
        gpu=GPUS_PER_JOB,
        processes=1,
        launcher="",
    params:
        settings=run_settings,
        stores=run_stores,
        state=f"{WORK}/runs/{{run}}.state",
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
