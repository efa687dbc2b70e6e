# Features that other programs extracted -> the same stores, receipts and seal; stores -> the files other programs read.


rule import_shard:
    "One shard of a feature from files: the same rows and receipt as an extraction."
    input:
        images=kept(layout.images(RESULTS)),
        sources=PLAN.import_files,
    output:
        receipt=kept(layout.receipt(RESULTS)),
    log:
        layout.log(WORK, "import_shard/{dataset}_{feature}_{shard}"),
    benchmark:
        layout.benchmark(WORK, "import_shard/{dataset}_{feature}_{shard}")
    wildcard_constraints:
        dataset=PLAN.imported,
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        source=PLAN.import_source,
        recipe=PLAN.import_recipe,
        contents=PLAN.import_contents,
        shards=PLAN.shards,
        store=PLAN.store,
        compression=PLAN.compression,
        wanted=PLAN.wanted,
    message:
        "Imports {wildcards.feature} of {wildcards.dataset}, shard {wildcards.shard}"
    shell:
        """
        python -m exchange import \
            --feature {wildcards.feature:q} \
            --source {params.source:q} \
            --images {input.images:q} \
            --shard {wildcards.shard} \
            --shards {params.shards} \
            --store {params.store:q} \
            --receipt {output.receipt:q} \
            --recipe {params.recipe} \
            --compression {params.compression} \
            {params.wanted:q} \
            > {log:q} 2>&1
        """


rule export_features:
    "A dataset's stores as the .npy and .txt files of SCAN, VSE-infinity and 3SHNet."
    input:
        unpack(PLAN.export_inputs),
    output:
        folder=kept_folder(layout.export(RESULTS)),
    log:
        layout.log(WORK, "export_features/{dataset}_{feature}"),
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        stores=PLAN.export_stores,
        options=PLAN.export_flags(),
    message:
        "Exports {wildcards.feature} of {wildcards.dataset}"
    shell:
        """
        python -m exchange export \
            --index "$(dirname {input.images:q})" \
            {params.stores:q} \
            --output {output.folder:q} \
            {params.options:q} \
            > {log:q} 2>&1
        """
