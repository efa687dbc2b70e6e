# Features that other programs extracted -> the same stores, receipts and seal; stores -> the files other programs read.


rule import_shard:
    input:
        images=kept(f"{RESULTS}/{{dataset}}/index/images.parquet"),
        sources=import_files,
    output:
        receipt=kept(
            f"{RESULTS}/{{dataset}}/features/{{feature}}.receipts/{{shard}}.json"
        ),
    log:
        f"{WORK}/logs/import_shard/{{dataset}}_{{feature}}_{{shard}}.log",
    benchmark:
        f"{WORK}/benchmarks/import_shard/{{dataset}}_{{feature}}_{{shard}}.tsv"
    wildcard_constraints:
        dataset=datasets_that(import_feature=True),
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        source=import_source,
        recipe=IMPORT_RECIPE,
        shards=shard_count,
        store=store_path,
        compression=SETTINGS.features.compression,
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
            > {log:q} 2>&1
        """


rule export_features:
    input:
        unpack(export_inputs),
    output:
        folder=kept_folder(f"{RESULTS}/{{dataset}}/export/{{feature}}"),
    log:
        f"{WORK}/logs/export_features/{{dataset}}_{{feature}}.log",
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        stores=export_stores,
        options=export_flags(),
    shell:
        """
        python -m exchange export \
            --index "$(dirname {input.images:q})" \
            {params.stores:q} \
            --output {output.folder:q} \
            {params.options:q} \
            > {log:q} 2>&1
        """
