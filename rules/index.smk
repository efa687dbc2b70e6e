# Raw annotations -> one index of images and captions; its row order is the join key of everything that follows.


rule render_scenes:
    output:
        scenes=directory(f"{WORK}/{{dataset}}/scenes"),
    log:
        f"{WORK}/logs/render_scenes/{{dataset}}.log",
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    params:
        settings=render_settings,
    shell:
        """
        python -m catalog.run render \
            --dataset {wildcards.dataset:q} \
            --settings {params.settings:q} \
            --output {output.scenes:q} \
            > {log:q} 2>&1
        """


rule unpack_images:
    input:
        archive=images_archive,
    output:
        images=directory(f"{WORK}/{{dataset}}/images"),
    log:
        f"{WORK}/logs/unpack_images/{{dataset}}.log",
    wildcard_constraints:
        dataset=alternatives(PACKED),
    conda:
        "../envs/pipeline.yaml"
    threads: 1
    shell:
        """
        python -m catalog.run unpack \
            --dataset {wildcards.dataset:q} \
            --archive {input.archive:q} \
            --output {output.images:q} \
            > {log:q} 2>&1
        """


rule index_dataset:
    input:
        sources=index_sources,
    output:
        images=kept(f"{RESULTS}/{{dataset}}/index/images.parquet"),
        captions=kept(f"{RESULTS}/{{dataset}}/index/captions.parquet"),
    log:
        f"{WORK}/logs/index_dataset/{{dataset}}.log",
    conda:
        "../envs/pipeline.yaml"
    threads: 2
    params:
        settings=index_settings,
        annotations=annotations_flag,
        files=index_files,
    shell:
        """
        python -m catalog.run index \
            --dataset {wildcards.dataset:q} \
            --settings {params.settings:q} \
            --images {output.images:q} \
            --captions {output.captions:q} \
            --threads {threads} \
            {params.annotations:q} \
            > {log:q} 2>&1
        """
