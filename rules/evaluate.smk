# Run x test set -> embeddings (each image and caption encoded once) -> metrics; ensembles work from the embeddings.


rule encode_testset:
    input:
        unpack(encode_inputs),
    output:
        embeddings=kept_folder(
            f"{RESULTS}/evaluation/{{run}}/{{testset}}/embeddings.zarr"
        ),
    log:
        f"{WORK}/logs/encode_testset/{{run}}/{{testset}}.log",
    benchmark:
        f"{WORK}/benchmarks/encode_testset/{{run}}/{{testset}}.tsv"
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    resources:
        gpu=GPUS_PER_JOB,
    params:
        split=testset_split,
        precision=testset_precision,
        stores=testset_stores,
    shell:
        """
        python -m evaluation.encode \
            --run "$(dirname {input.model:q})" \
            --images {input.images:q} \
            --captions {input.captions:q} \
            --split {params.split:q} \
            --precision {params.precision} \
            {params.stores:q} \
            --output {output.embeddings:q} \
            --threads {threads} \
            > {log:q} 2>&1
        """


rule compute_metrics:
    input:
        embeddings=kept(f"{RESULTS}/evaluation/{{run}}/{{testset}}/embeddings.zarr"),
        positives=protocol_files,
    output:
        metrics=kept(f"{RESULTS}/evaluation/{{run}}/{{testset}}/metrics.json"),
    log:
        f"{WORK}/logs/compute_metrics/{{run}}/{{testset}}.log",
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        folds=testset_folds,
        protocols=testset_protocols,
    shell:
        """
        python -m evaluation.metrics \
            --embeddings {input.embeddings:q} \
            --folds {params.folds} \
            {params.protocols:q} \
            --output {output.metrics:q} \
            > {log:q} 2>&1
        """


rule compute_ensemble:
    input:
        embeddings=ensemble_inputs,
        positives=protocol_files,
    output:
        metrics=kept(f"{RESULTS}/ensembles/{{ensemble}}/{{testset}}/metrics.json"),
    log:
        f"{WORK}/logs/compute_ensemble/{{ensemble}}/{{testset}}.log",
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        folds=testset_folds,
        protocols=testset_protocols,
    shell:
        """
        python -m evaluation.ensemble \
            --embeddings {input.embeddings:q} \
            --folds {params.folds} \
            {params.protocols:q} \
            --output {output.metrics:q} \
            > {log:q} 2>&1
        """


rule write_tables:
    input:
        metrics=metrics_files(),
    output:
        csv=kept(f"{RESULTS}/tables/results.csv"),
        markdown=kept(f"{RESULTS}/tables/results.md"),
        latex=kept(f"{RESULTS}/tables/results.tex"),
    log:
        f"{WORK}/logs/write_tables.log",
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        settings=table_settings,
    shell:
        """
        python -m evaluation.table \
            --results "$(dirname "$(dirname {output.csv:q})")" \
            --config {params.settings:q} \
            --out {output.csv:q} {output.markdown:q} {output.latex:q} \
            > {log:q} 2>&1
        """
