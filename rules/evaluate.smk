# Run x test set -> embeddings (each image and caption encoded once), or scores of pairs -> metrics; ensembles work from these.


rule encode_testset:
    "Embeddings of a run on a test set: each image and each caption once."
    input:
        unpack(PLAN.encode_inputs),
    output:
        scored=kept_folder(layout.embeddings(RESULTS)),
    log:
        layout.log(WORK, "encode_testset/{run}/{testset}"),
    benchmark:
        layout.benchmark(WORK, "encode_testset/{run}/{testset}")
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    resources:
        gpu=GPUS_PER_JOB,
    params:
        split=PLAN.ask("testsets.{testset}.split"),
        precision=PLAN.ask("testsets.{testset}.precision"),
        stores=PLAN.encode_stores,
        contents=PLAN.model_contents,
    message:
        "Embeds test set {wildcards.testset} by run {wildcards.run}"
    shell:
        """
        python -m evaluation.encode \
            --run "$(dirname {input.model:q})" \
            --images {input.images:q} \
            --captions {input.captions:q} \
            --split {params.split:q} \
            --precision {params.precision} \
            {params.stores:q} \
            --output {output.scored:q} \
            --threads {threads} \
            > {log:q} 2>&1
        """


# Scores of all images and captions of a test set by a run that scores pairs, in place of embeddings: the same command.
use rule encode_testset as score_pairs with:
    output:
        scored=kept_folder(layout.scores(RESULTS)),
    log:
        layout.log(WORK, "score_pairs/{run}/{testset}"),
    benchmark:
        layout.benchmark(WORK, "score_pairs/{run}/{testset}")
    threads: PLAN.training_threads
    message:
        "Scores all pairs of test set {wildcards.testset} by run {wildcards.run}"


rule compute_metrics:
    "Recall of a run on a test set, its intervals, folds and further protocols; control and chance beside it."
    input:
        embeddings=PLAN.scored,
        positives=PLAN.protocol_files,
    output:
        metrics=kept(layout.metrics(RESULTS)),
        ranks=kept(layout.ranks(RESULTS)),
    log:
        layout.log(WORK, "compute_metrics/{run}/{testset}"),
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        folds=PLAN.ask("testsets.{testset}.folds"),
        protocols=PLAN.protocol_flags,
        contents=PLAN.protocol_contents,
    message:
        "Scores run {wildcards.run} on {wildcards.testset}"
    shell:
        """
        python -m evaluation.metrics \
            --embeddings {input.embeddings:q} \
            --folds {params.folds} \
            {params.protocols:q} \
            --ranks {output.ranks:q} \
            --output {output.metrics:q} \
            > {log:q} 2>&1
        """


rule compute_ensemble:
    "The same of an ensemble: the mean of its runs' similarities."
    input:
        embeddings=PLAN.ensemble_inputs,
        positives=PLAN.protocol_files,
    output:
        metrics=kept(layout.ensemble_metrics(RESULTS)),
        ranks=kept(layout.ensemble_ranks(RESULTS)),
    log:
        layout.log(WORK, "compute_ensemble/{ensemble}/{testset}"),
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        folds=PLAN.ask("testsets.{testset}.folds"),
        protocols=PLAN.protocol_flags,
        contents=PLAN.protocol_contents,
    message:
        "Scores ensemble {wildcards.ensemble} on {wildcards.testset}"
    shell:
        """
        python -m evaluation.ensemble \
            --embeddings {input.embeddings:q} \
            --folds {params.folds} \
            {params.protocols:q} \
            --ranks {output.ranks:q} \
            --output {output.metrics:q} \
            > {log:q} 2>&1
        """


rule write_tables:
    "All scores side by side, with published ones: for papers and spreadsheets."
    input:
        metrics=PLAN.all_metrics(),
    output:
        csv=kept(layout.table(RESULTS, "csv")),
        markdown=kept(layout.table(RESULTS, "md")),
        latex=kept(layout.table(RESULTS, "tex")),
    log:
        layout.log(WORK, "write_tables"),
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        settings=PLAN.table_settings,
    message:
        "Writes the tables of all scores"
    shell:
        """
        python -m evaluation.table \
            --results "$(dirname "$(dirname {output.csv:q})")" \
            --config {params.settings:q} \
            --out {output.csv:q} {output.markdown:q} {output.latex:q} \
            > {log:q} 2>&1
        """
