# What can be asked for by name beside `all`: `snakemake --cores N TARGET`.


rule index:
    input:
        [
            index_file(d, table)
            for d in SETTINGS.datasets
            for table in ("images", "captions")
        ],


rule regions:
    input:
        stores_of("regions"),


rule grids:
    input:
        stores_of("grids"),


rule panoptic:
    input:
        stores_of("panoptic"),


rule features:
    input:
        [path for feature in FEATURES for path in stores_of(feature)],


rule train:
    input:
        [kept(f"{RESULTS}/runs/{run}/model.safetensors") for run in SETTINGS.runs],


rule evaluate:
    input:
        metrics_files(),
        table_files(),


rule report:
    input:
        kept(f"{RESULTS}/report/index.html"),


rule export:
    input:
        export_folders(),


rule verify:
    input:
        [
            f"{WORK}/verified/{dataset}/{feature}.json"
            for dataset in SETTINGS.datasets
            for feature in needed_features(dataset)
        ],
