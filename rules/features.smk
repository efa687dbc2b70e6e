# Images -> feature stores. Shard jobs write disjoint files of a store and a receipt beside it; the seal checks all parts and
# only then makes the store openable. The store itself is never a declared output of two rules.


rule extract_shard:
    "One shard of a feature from images: its rows of the store, and a receipt that lists them."
    input:
        images=kept(layout.images(RESULTS)),
        weights=PLAN.weights,
    output:
        receipt=kept(layout.receipt(RESULTS)),
    log:
        layout.log(WORK, "extract_shard/{dataset}_{feature}_{shard}"),
    benchmark:
        layout.benchmark(WORK, "extract_shard/{dataset}_{feature}_{shard}")
    wildcard_constraints:
        dataset=PLAN.extracted,
    conda:
        PLAN.feature_environment
    threads: PLAN.extraction_threads
    resources:
        gpu=GPUS_PER_JOB,
    params:
        settings=PLAN.ask("features.{feature}"),
        recipe=PLAN.feature_recipe,
        contents=PLAN.weights_contents,
        shards=PLAN.shards,
        store=PLAN.store,
        compression=PLAN.compression,
        wanted=PLAN.wanted,
        on_bad_image=PLAN.on_bad_image,
    message:
        "Extracts {wildcards.feature} of {wildcards.dataset}, shard {wildcards.shard}"
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
            {params.wanted:q} \
            --on-bad-image {params.on_bad_image:q} \
            --threads {threads} \
            --workers {threads} \
            > {log:q} 2>&1
        """


rule seal_store:
    "Checks all parts of a store against their receipts and makes it openable."
    input:
        images=kept(layout.images(RESULTS)),
        receipts=PLAN.receipts,
    output:
        store=kept(layout.sealed(RESULTS)),
    log:
        layout.log(WORK, "seal_store/{dataset}_{feature}"),
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        store=PLAN.store,
        on_bad_image=PLAN.on_bad_image,
        unwanted=PLAN.unwanted,
    message:
        "Checks and seals the {wildcards.feature} of {wildcards.dataset}"
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


rule verify_store:
    "Reads a sealed store from end to end and compares it with its receipts."
    input:
        images=kept(layout.images(RESULTS)),
        receipts=PLAN.receipts,
        sealed=kept(layout.sealed(RESULTS)),
    output:
        report=layout.verified(WORK),
    log:
        layout.log(WORK, "verify_store/{dataset}_{feature}"),
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        store=PLAN.store,
        # Never the same: what was whole yesterday need not be whole today.
        asked=PLAN.this_moment,
    message:
        "Verifies the {wildcards.feature} of {wildcards.dataset}"
    shell:
        """
        python -m stores.verify \
            --store {params.store:q} \
            --receipts {input.receipts:q} \
            --images {input.images:q} \
            --report {output.report:q} \
            > {log:q} 2>&1
        """
