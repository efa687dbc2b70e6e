# Raw annotations -> one index of images and captions; its row order is the join key of everything that follows.


rule render_scenes:
    "Draws a dataset of the embedded renderer: images and captions."
    output:
        scenes=directory(layout.made(WORK, "scenes")),
    log:
        layout.log(WORK, "render_scenes/{dataset}"),
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        settings=PLAN.ask("datasets.{dataset}.render_settings"),
    message:
        "Draws the scenes of {wildcards.dataset}"
    shell:
        """
        python -m catalog.run render \
            --dataset {wildcards.dataset:q} \
            --settings {params.settings:q} \
            --output {output.scenes:q} \
            > {log:q} 2>&1
        """


rule unpack_images:
    "Images out of their archive: every stage reads them from files."
    input:
        archive=PLAN.archive,
    output:
        images=directory(layout.made(WORK, "images")),
    log:
        layout.log(WORK, "unpack_images/{dataset}"),
    wildcard_constraints:
        dataset=PLAN.packed,
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        content=PLAN.archive_content,
    message:
        "Unpacks the images of {wildcards.dataset}"
    shell:
        """
        python -m catalog.run unpack \
            --dataset {wildcards.dataset:q} \
            --archive {input.archive:q} \
            --output {output.images:q} \
            > {log:q} 2>&1
        """


rule index_dataset:
    "Two tables, images and captions: ids, paths, sizes, splits, content hashes."
    input:
        sources=PLAN.index_sources,
    output:
        images=kept(layout.images(RESULTS)),
        captions=kept(layout.captions(RESULTS)),
    log:
        layout.log(WORK, "index_dataset/{dataset}"),
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        settings=PLAN.index_settings,
        reason=PLAN.index_reason,
        annotations=PLAN.index_flags,
        needed=PLAN.index_needed,
        files=PLAN.ask("datasets.{dataset}.state"),
        contents=PLAN.index_contents,
    message:
        "Indexes {wildcards.dataset}"
    shell:
        """
        python -m catalog.run index \
            --dataset {wildcards.dataset:q} \
            --settings {params.settings:q} \
            --images {output.images:q} \
            --captions {output.captions:q} \
            --threads {threads} \
            {params.annotations:q} \
            {params.needed:q} \
            --reason {params.reason:q} \
            > {log:q} 2>&1
        """
