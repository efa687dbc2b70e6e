# Images -> feature stores. Shard jobs write disjoint files of a store and a receipt beside it; the seal checks all parts and
# only then makes the store openable. The store itself is never a declared output of two rules.


rule extract_shard:
    input:
        images=kept(f"{RESULTS}/{{dataset}}/index/images.parquet"),
        weights=feature_weights,
    output:
        receipt=kept(
            f"{RESULTS}/{{dataset}}/features/{{feature}}.receipts/{{shard}}.json"
        ),
    log:
        f"{WORK}/logs/extract_shard/{{dataset}}_{{feature}}_{{shard}}.log",
    benchmark:
        f"{WORK}/benchmarks/extract_shard/{{dataset}}_{{feature}}_{{shard}}.tsv"
    wildcard_constraints:
        dataset=datasets_that(import_feature=False),
    conda:
        feature_environment
    threads: extraction_threads
    resources:
        gpu=GPUS_PER_JOB,
    params:
        settings=feature_settings,
        recipe=feature_recipe,
        shards=shard_count,
        store=store_path,
        compression=SETTINGS.features.compression,
    shell:
        """
        python -m extractors.run \
            --feature {wildcards.feature:q} \
            --images {input.images:q} \
            --shard {wildcards.shard} \
            --shards {params.shards} \
            --store {params.store:q} \
            --receipt {output.receipt:q} \
            --settings {params.settings:q} \
            --recipe {params.recipe} \
            --compression {params.compression} \
            --threads {threads} \
            --workers {threads} \
            > {log:q} 2>&1
        """


rule seal_store:
    input:
        images=kept(f"{RESULTS}/{{dataset}}/index/images.parquet"),
        receipts=store_receipts,
    output:
        store=kept(f"{RESULTS}/{{dataset}}/features/{{feature}}.zarr/zarr.json"),
    log:
        f"{WORK}/logs/seal_store/{{dataset}}_{{feature}}.log",
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        store=store_path,
        on_bad_image=SETTINGS.features.on_bad_image,
    shell:
        """
        python -m stores.seal \
            --store {params.store:q} \
            --receipts {input.receipts:q} \
            --images {input.images:q} \
            --marker {output.store:q} \
            --on-bad-image {params.on_bad_image:q} \
            > {log:q} 2>&1
        """


# Made anew whenever it is asked for, by a parameter that never stays: what was whole yesterday need not be whole today.
rule verify_store:
    input:
        images=kept(f"{RESULTS}/{{dataset}}/index/images.parquet"),
        receipts=store_receipts,
        sealed=kept(f"{RESULTS}/{{dataset}}/features/{{feature}}.zarr/zarr.json"),
    output:
        report=f"{WORK}/verified/{{dataset}}/{{feature}}.json",
    log:
        f"{WORK}/logs/verify_store/{{dataset}}_{{feature}}.log",
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        store=store_path,
        asked=this_moment,
    shell:
        """
        python -m stores.verify \
            --store {params.store:q} \
            --receipts {input.receipts:q} \
            --images {input.images:q} \
            --report {output.report:q} \
            > {log:q} 2>&1
        """
