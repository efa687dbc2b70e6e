# Run x test set -> embeddings (each image and caption encoded once) -> metrics; ensembles work from the embeddings.


rule encode_testset:
    input:
        unpack(encode_inputs),
    output:
        directory(f"{RESULTS}/evaluation/{{run}}/{{testset}}/embeddings.zarr"),
    log:
        f"{RESULTS}/logs/encode_testset/{{run}}_{{testset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/encode_testset/{{run}}_{{testset}}.tsv"
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    resources:
        gpu=GPUS_PER_JOB,
    params:
        split=testset_split,
    shell:
        """
        python -m evaluation.encode \
            --run "$(dirname {input.model:q})" \
            --images {input.images:q} \
            --captions {input.captions:q} \
            --split {params.split:q} \
            --visual "$(dirname {input.visual:q})" \
            --panoptic "$(dirname {input.panoptic:q})" \
            --output {output:q} \
            --threads {threads} \
            > {log:q} 2>&1
        """


rule compute_metrics:
    input:
        f"{RESULTS}/evaluation/{{run}}/{{testset}}/embeddings.zarr",
    output:
        f"{RESULTS}/evaluation/{{run}}/{{testset}}/metrics.json",
    log:
        f"{RESULTS}/logs/compute_metrics/{{run}}_{{testset}}.log",
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        folds=testset_folds,
    shell:
        """
        python -m evaluation.metrics \
            --embeddings {input:q} \
            --folds {params.folds} \
            --output {output:q} \
            > {log:q} 2>&1
        """


rule compute_ensemble:
    input:
        ensemble_inputs,
    output:
        f"{RESULTS}/ensembles/{{ensemble}}/{{testset}}/metrics.json",
    log:
        f"{RESULTS}/logs/compute_ensemble/{{ensemble}}_{{testset}}.log",
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        folds=testset_folds,
    shell:
        """
        python -m evaluation.ensemble \
            --embeddings {input:q} \
            --folds {params.folds} \
            --output {output:q} \
            > {log:q} 2>&1
        """
