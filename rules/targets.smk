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
        [sealed(d, "regions") for d in SETTINGS.datasets],


rule grids:
    input:
        [sealed(d, "grids") for d in SETTINGS.datasets],


rule panoptic:
    input:
        [sealed(d, "panoptic") for d in SETTINGS.datasets],


rule features:
    input:
        [sealed(d, f) for d in SETTINGS.datasets for f in FEATURES],


rule train:
    input:
        [f"{RESULTS}/runs/{run}/model.safetensors" for run in SETTINGS.runs],


rule evaluate:
    input:
        metrics_files(),
        table_files(),


rule report:
    input:
        f"{RESULTS}/report/index.html",
