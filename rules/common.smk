# Settings, paths and the functions that rules use; no rules here.
import json
import re
import sys
import time
from importlib.util import find_spec
from pathlib import Path

# In front of all else: the folder that Snakemake is started from may hold packages and files of the same names.
REPOSITORY = str(workflow.basedir)
sys.path.insert(0, REPOSITORY)

from catalog.files import folder_state, is_archive
from catalog.layout import BOXES_FILE, array_path, layout_files
from catalog.settings import available_features, imported_features
from core.console import UserError
from core.devices import gpu_present
from core.features import FEATURES
from core.machine import remember_configfiles, use_this_interpreter
from core.section import canonical
from evaluation.positives import positives_files
from extractors.settings import feature_files
from published.download import LOCK_FILE, record, verify
from published.registry import ENTRIES, entry_at
from settings import load_settings, used_weights
from snakemake.exceptions import WorkflowError

use_this_interpreter(REPOSITORY)
remember_configfiles(workflow.overwrite_configfiles)
CONFIGFILES = workflow.overwrite_configfiles or [DEFAULT_CONFIG]
PUBLISHED_LOCK = str(Path(CONFIGFILES[0]).parent / LOCK_FILE)


def published_in_use():
    """(entry, file, digests if it is there) of all published weights that the configuration names, verified."""
    folder = SETTINGS.published.folder
    entries = [entry_at(path, folder) for path in used_weights(SETTINGS)]
    return [
        (entry, file, verify(entry, file, folder=folder, lock=PUBLISHED_LOCK))
        for entry in entries
        if entry is not None
        for file in entry.files
    ]


def record_published():
    """Remember the digests of files that somebody else, or another configuration, put there."""
    try:
        for entry, file, digests in published_in_use():
            if digests is not None:
                record(entry, file, digests, lock=PUBLISHED_LOCK)
    except UserError as error:
        raise WorkflowError(str(error)) from None


try:
    SETTINGS = load_settings(
        config, files=CONFIGFILES, given=workflow.config_settings.config
    )
    published_in_use()
except UserError as error:
    raise WorkflowError(str(error)) from None

RESULTS = SETTINGS.results
# In a bucket lies what the workflow makes; logs, benchmarks, states to resume from and rendered images stay on this file system.
REMOTE = RESULTS.startswith("s3://")
if REMOTE and not find_spec("snakemake_storage_plugin_s3"):
    raise WorkflowError(
        f"results: {RESULTS} needs more packages: pip install --group s3"
    )
WORK = RESULTS.replace("s3://", "results/") if REMOTE else RESULTS
# A job asks for a GPU where this machine has one; cluster profiles ask by `set-resources`.
GPUS_PER_JOB = int(gpu_present())
# Unknown on a cluster's head node (`workflow.cores` would raise); its profile says how many threads a job gets.
CORES = workflow.resource_settings.cores or 1
PUBLISHED = [
    f"{entry.name}/{file.name}" for entry in ENTRIES.values() for file in entry.files
]


def alternatives(names):
    """A wildcard constraint that matches the given names only."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


def recipe(feature):
    """RECIPE number of an extractor, read without importing it (that would load torch for every dry run)."""
    return read_recipe(Path(REPOSITORY, "extractors", f"{feature}.py"))


def read_recipe(path):
    source = path.read_text()
    return int(re.search(r"^RECIPE = (\d+)$", source, re.M).group(1))


RECIPES = {feature: recipe(feature) for feature in FEATURES}
IMPORT_RECIPE = read_recipe(Path(REPOSITORY, "exchange", "importing.py"))


def datasets_that(import_feature):
    """A constraint on `dataset`, by the feature that follows it in a receipt's path: imported ones, or all others."""
    names = []
    for name, dataset in SETTINGS.datasets.items():
        imported = imported_features(dataset)
        chosen = [f for f in FEATURES if (f in imported) == import_feature]
        if chosen:
            # (?=...): what follows decides and is left for the pattern to match.
            names.append(rf"{re.escape(name)}(?=/features/(?:{'|'.join(chosen)})\.)")
    return "|".join(names) or "(?!)"


def needed_features(dataset):
    """What is extracted from a dataset: what its runs and test sets use, or everything if nothing uses it."""
    tested = any(dataset == testset.dataset for testset in SETTINGS.testsets.values())
    # Every run is scored on every test set; a dataset that is only trained on needs what its own runs eat.
    visual = {
        run.visual for run in SETTINGS.runs.values() if tested or run.dataset == dataset
    }
    available = available_features(SETTINGS.datasets[dataset])
    if not visual:
        return available
    return [
        feature for feature in available if feature in visual or feature == "panoptic"
    ]


def kept(path):
    """A file or folder below RESULTS as rules name it. Data of stores is no such file: commands read and write it in place."""
    return storage.s3(path) if REMOTE else path


def kept_folder(path):
    """A folder below RESULTS that is a rule's output."""
    return storage.s3(path) if REMOTE else directory(path)


def index_file(dataset, table):
    return kept(f"{RESULTS}/{dataset}/index/{table}.parquet")


def store(dataset, feature):
    return f"{RESULTS}/{dataset}/features/{feature}.zarr"


def sealed(dataset, feature):
    return kept(f"{store(dataset, feature)}/zarr.json")


def receipts(dataset, feature):
    count = SETTINGS.datasets[dataset].shards
    return [
        kept(f"{RESULTS}/{dataset}/features/{feature}.receipts/{k}.json")
        for k in range(count)
    ]


def all_features():
    """Every sealed store that the configuration uses."""
    return [sealed(d, f) for d in SETTINGS.datasets for f in needed_features(d)]


def stores_of(feature):
    """Every sealed store of a feature that the datasets can have."""
    return [
        sealed(name, feature)
        for name, dataset in SETTINGS.datasets.items()
        if feature in available_features(dataset)
    ]


def export_folders():
    """What target `export` makes: a folder per dataset and visual feature in use."""
    return [
        kept(f"{RESULTS}/{d}/export/{f}")
        for d in SETTINGS.datasets
        for f in needed_features(d)
        if f != "panoptic" and f in SETTINGS.export.features
    ]


def metrics_files():
    """Every metrics.json that the configuration asks for."""
    models = [f"{RESULTS}/evaluation/{run}" for run in SETTINGS.runs]
    models += [f"{RESULTS}/ensembles/{ensemble}" for ensemble in SETTINGS.ensembles]
    return [
        kept(f"{model}/{testset}/metrics.json")
        for model in models
        for testset in SETTINGS.testsets
    ]


# Inputs and parameters by wildcards.


def render_settings(wildcards):
    dataset = SETTINGS.datasets[wildcards.dataset]
    return canonical_part(dataset, "shards")


def index_settings(wildcards):
    # Without what decides about features alone: that changes no index.
    without = ("shards", "imports", "class_order", "seg_maps", "rounding", "provenance")
    return canonical_part(SETTINGS.datasets[wildcards.dataset], *without)


def canonical_part(section, *without):
    content = json.loads(canonical(section))
    return json.dumps(
        {k: v for k, v in content.items() if k not in without}, sort_keys=True
    )


def index_sources(wildcards):
    """What an index is made from: the rendered folder, or the user's captions."""
    dataset = SETTINGS.datasets[wildcards.dataset]
    if dataset.source == "scenes":
        folder = f"{WORK}/{wildcards.dataset}/scenes"
        # A bucket's times have no fractions of a second: an index made in the folder's second would look older. What the
        # folder holds follows from the settings, which are a parameter of the index.
        return [ancient(folder) if REMOTE else folder]
    if dataset.source == "karpathy":
        return [dataset.annotations]
    if dataset.source == "precomputed":
        prefixes = dataset.splits.values()
        texts = [f"{dataset.folder}/{p}_caps.txt" for p in prefixes]
        texts += existing(
            f"{dataset.folder}/{p}_{n}.txt" for p in prefixes for n in ("ids", "capids")
        )
        arrays = [
            f for feature in dataset.features for f in array_files(dataset, feature)
        ]
        return texts + list(dict.fromkeys(arrays))
    lists = (dataset.split_files or {}).values()
    unpacked = (
        [unpacked_images(wildcards.dataset)] if is_archive(dataset.images) else []
    )
    return [*filter(None, [dataset.captions]), *lists, *unpacked]


PACKED = [
    name
    for name, dataset in SETTINGS.datasets.items()
    if dataset.source == "folder" and is_archive(dataset.images)
]


def unpacked_images(dataset):
    return f"{WORK}/{dataset}/images"


def images_archive(wildcards):
    return SETTINGS.datasets[wildcards.dataset].images


def index_files(wildcards):
    """The state of a folder's images. As an input the folder would miss its subfolders and files that were replaced."""
    dataset = SETTINGS.datasets[wildcards.dataset]
    if dataset.source != "folder" or is_archive(dataset.images):
        return ""
    return folder_state(dataset.images)


def annotations_flag(wildcards):
    dataset = SETTINGS.datasets[wildcards.dataset]
    if dataset.source == "folder" and is_archive(dataset.images):
        return ["--unpacked", unpacked_images(wildcards.dataset)]
    if dataset.source == "scenes":
        return ["--annotations", f"{WORK}/{wildcards.dataset}/scenes"]
    return []


def existing(paths):
    return [path for path in paths if Path(path).exists()]


def array_files(dataset, feature):
    """The `.npy` files that a feature of precomputed data is read from."""

    def files(names):
        return [
            str(array_path(dataset.folder, prefix, name))
            for prefix in dataset.splits.values()
            for name in names
        ]

    optional = [BOXES_FILE] if feature == "regions" else []
    return files(layout_files(feature).values()) + existing(files(optional))


def import_files(wildcards):
    dataset = SETTINGS.datasets[wildcards.dataset]
    if dataset.source == "precomputed":
        return array_files(dataset, wildcards.feature)
    return [getattr(dataset.imports, wildcards.feature).path]


def import_source(wildcards):
    """Format and options of an import, as the command takes them."""
    dataset = SETTINGS.datasets[wildcards.dataset]
    if dataset.source == "precomputed":
        content = json.loads(canonical_part(dataset, "source", "shards"))
        return json.dumps(content | {"format": "scan"}, sort_keys=True)
    return canonical(getattr(dataset.imports, wildcards.feature))


def exports_panoptic(dataset):
    available = available_features(SETTINGS.datasets[dataset])
    return "panoptic" in available and "panoptic" in SETTINGS.export.features


def export_inputs(wildcards):
    inputs = {
        "images": index_file(wildcards.dataset, "images"),
        "captions": index_file(wildcards.dataset, "captions"),
        "visual": sealed(wildcards.dataset, wildcards.feature),
    }
    if exports_panoptic(wildcards.dataset):
        inputs["panoptic"] = sealed(wildcards.dataset, "panoptic")
    return inputs


def export_stores(wildcards):
    dataset = wildcards.dataset
    return store_flags(dataset, wildcards.feature, exports_panoptic(dataset))


def export_flags():
    export = SETTINGS.export
    flags = ["--names", json.dumps(export.names), "--class-order", export.class_order]
    flags += ["--seg-maps", export.seg_maps]
    return flags + (["--repeat-images"] if export.repeat_images else [])


def feature_weights(wildcards):
    return feature_files(getattr(SETTINGS.features, wildcards.feature))


def feature_settings(wildcards):
    return canonical(getattr(SETTINGS.features, wildcards.feature))


def feature_environment(wildcards):
    engine = getattr(SETTINGS.features, wildcards.feature).engine
    return f"../envs/{'pipeline' if engine == 'native' else engine}.yaml"


def feature_recipe(wildcards):
    return RECIPES[wildcards.feature]


def shard_count(wildcards):
    return SETTINGS.datasets[wildcards.dataset].shards


def store_path(wildcards):
    return store(wildcards.dataset, wildcards.feature)


def store_receipts(wildcards):
    return receipts(wildcards.dataset, wildcards.feature)


def published_settings(wildcards, output):
    # A function of `output` is no reason to run again: another mirror must not fetch what is there.
    return canonical(SETTINGS.published)


def published_lock(wildcards, output):
    return PUBLISHED_LOCK


def pretrained_files(run):
    """Files of the published text encoder that a run starts from."""
    folder = SETTINGS.published.folder
    entry = entry_at(run.text.pretrained, folder)
    files = entry.files if entry is not None else ()
    return [str(entry.file_path(file, folder)) for file in files]


def run_inputs(wildcards):
    run = SETTINGS.runs[wildcards.run]
    return {
        "pretrained": pretrained_files(run),
        "images": index_file(run.dataset, "images"),
        "captions": index_file(run.dataset, "captions"),
        "visual": sealed(run.dataset, run.visual),
        "panoptic": sealed(run.dataset, "panoptic"),
    }


def run_settings(wildcards):
    run = SETTINGS.runs[wildcards.run]
    content = json.loads(canonical(run))
    content["seed"] = SETTINGS.seed if run.seed is None else run.seed
    # The dataset and its stores are inputs of the rule; what is left is the recipe.
    return json.dumps(
        {k: v for k, v in content.items() if k not in ("dataset", "visual")},
        sort_keys=True,
    )


def run_stores(wildcards):
    """Flags of a command that reads the stores a run is trained on."""
    run = SETTINGS.runs[wildcards.run]
    return store_flags(run.dataset, run.visual)


def testset_stores(wildcards):
    run, testset = SETTINGS.runs[wildcards.run], SETTINGS.testsets[wildcards.testset]
    return store_flags(testset.dataset, run.visual)


def store_flags(dataset, visual, panoptic=True):
    flags = ["--visual", store(dataset, visual)]
    return flags + (["--panoptic", store(dataset, "panoptic")] if panoptic else [])


def encode_inputs(wildcards):
    run, testset = SETTINGS.runs[wildcards.run], SETTINGS.testsets[wildcards.testset]
    return {
        "model": kept(f"{RESULTS}/runs/{wildcards.run}/model.safetensors"),
        "config": kept(f"{RESULTS}/runs/{wildcards.run}/config.json"),
        "vocabulary": kept(f"{RESULTS}/runs/{wildcards.run}/vocab.txt"),
        "images": index_file(testset.dataset, "images"),
        "captions": index_file(testset.dataset, "captions"),
        "visual": sealed(testset.dataset, run.visual),
        "panoptic": sealed(testset.dataset, "panoptic"),
    }


def testset_split(wildcards):
    return SETTINGS.testsets[wildcards.testset].split


def testset_precision(wildcards):
    return SETTINGS.testsets[wildcards.testset].precision


def testset_folds(wildcards):
    return SETTINGS.testsets[wildcards.testset].folds


def testset_protocols(wildcards):
    """The flags of a test set's protocols beside the standard one."""
    testset = SETTINGS.testsets[wildcards.testset]
    flags = ["--protocols", *testset.protocols] if testset.protocols else []
    return flags + (["--positives", testset.positives] if testset.positives else [])


def protocol_files(wildcards):
    """Those of a test set's positives that lie in the user's folder; the package's do not change."""
    testset = SETTINGS.testsets[wildcards.testset]
    files = [
        file
        for name in testset.protocols
        for file in positives_files(name, testset.positives)
    ]
    return [
        str(file)
        for file in files
        if testset.positives and file.parent == Path(testset.positives)
    ]


def ensemble_inputs(wildcards):
    runs = SETTINGS.ensembles[wildcards.ensemble].runs
    return [
        kept(f"{RESULTS}/evaluation/{run}/{wildcards.testset}/embeddings.zarr")
        for run in runs
    ]


def table_files():
    """The results as tables, if there is anything to score."""
    formats = ("csv", "md", "tex") if metrics_files() else ()
    return [kept(f"{RESULTS}/tables/results.{suffix}") for suffix in formats]


def table_settings(wildcards):
    """What the tables show and in which order."""
    return json.dumps(
        {
            "runs": dict.fromkeys(SETTINGS.runs, {}),
            "ensembles": dict.fromkeys(SETTINGS.ensembles, {}),
            "testsets": {
                name: {"benchmark": testset.benchmark}
                for name, testset in SETTINGS.testsets.items()
            },
        }
    )


def report_inputs(wildcards):
    files = [
        index_file(d, table)
        for d in SETTINGS.datasets
        for table in ("images", "captions")
    ]
    for dataset in SETTINGS.datasets:
        for feature in needed_features(dataset):
            files += [sealed(dataset, feature), *receipts(dataset, feature)]
    for run in SETTINGS.runs:
        files += [
            kept(f"{RESULTS}/runs/{run}/config.json"),
            kept(f"{RESULTS}/runs/{run}/history.csv"),
        ]
        files += [
            kept(f"{RESULTS}/evaluation/{run}/{testset}/embeddings.zarr")
            for testset in SETTINGS.testsets
        ]
    return files + metrics_files()


def report_settings(wildcards):
    # In the order of the configuration: the report lists its parts in the same.
    return json.dumps(SETTINGS.model_dump(), ensure_ascii=False)


def training_threads(wildcards):
    """Runs train side by side and share the cores."""
    return max(1, CORES // max(1, len(SETTINGS.runs)))


def extraction_threads(wildcards):
    """Shards are extracted side by side; more than four threads for one network are seldom well used."""
    jobs = sum(d.shards for d in SETTINGS.datasets.values()) * len(FEATURES)
    return max(1, min(4, CORES // jobs))


def this_moment(wildcards):
    return time.time_ns()


def results_place(wildcards):
    """Where commands find the data of stores below."""
    return RESULTS
