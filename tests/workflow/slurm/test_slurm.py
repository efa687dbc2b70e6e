"""profiles/slurm on a real Slurm: the whole tiny DAG, GPUs that jobs queue for, retries, and a master that is killed."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime

import pytest
import yaml

from ..conftest import TINY, Workflow
from .cluster import Cluster

pytestmark = [pytest.mark.workflow, pytest.mark.slurm]

# One shard per store and fewer images: each Slurm job costs seconds on a small machine.
CONFIG = copy.deepcopy(TINY)
CONFIG["datasets"]["tiny"] |= {"shards": 1, "splits": {"train": 12, "val": 5, "test": 10}}


def start(
    workflow: Workflow, cluster: Cluster, *arguments: str, config: dict = CONFIG, profile: str = "slurm"
) -> subprocess.Popen:
    """Snakemake with a profile of a cluster, its output in `snakemake.log` of the workflow's folder."""
    workflow.configfile.write_text(yaml.safe_dump({"results": "results"} | config))
    command = [
        sys.executable,
        "-m",
        "snakemake",
        *arguments,
        "--profile",
        str(workflow.repository / "profiles" / profile),
    ]
    # Jobs last seconds here, and the machine is smaller than a node.
    if profile == "slurm":
        command += ["--slurm-init-seconds-before-status-checks", "1"]
    command += ["--set-threads", *(f"{rule}=1" for rule in ("extract_shard", "train_model", "encode_testset"))]
    command += ["--snakefile", str(workflow.repository / "Snakefile"), "--configfile", str(workflow.configfile)]
    with (workflow.folder / "snakemake.log").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=workflow.folder,
            env=os.environ | cluster.environment | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def output(workflow: Workflow) -> str:
    return (workflow.folder / "snakemake.log").read_text(errors="replace")


def rule_of(job: dict[str, str]) -> str:
    """The rule or group of a job of Slurm's list: the plugin writes it into the comment."""
    return job["Comment"].removeprefix("rule_").split("_wildcards_")[0]


def jobs_of(cluster: Cluster, workflow: Workflow) -> list[dict[str, str]]:
    """Slurm's jobs that were submitted from a workflow's folder, in the order of submission."""
    return [job for job in cluster.jobs() if job["WorkDir"] == str(workflow.folder)]


def memory_mb(job: dict[str, str]) -> float:
    requested = dict(part.split("=") for part in job["TRES"].split(","))["mem"]
    return float(requested[:-1]) * {"M": 1, "G": 1024}[requested[-1]]


def seconds(job: dict[str, str]) -> float:
    return (datetime.fromisoformat(job["EndTime"]) - datetime.fromisoformat(job["StartTime"])).total_seconds()


@pytest.fixture(scope="module")
def clustered(make_workflow, cluster):
    """The tiny workflow, run to its end on Slurm, and Slurm's list of its jobs."""
    workflow = make_workflow(CONFIG)
    code = start(workflow, cluster).wait(560)
    assert code == 0, output(workflow)
    return workflow, jobs_of(cluster, workflow)


def test_the_whole_dag_runs_as_slurm_jobs(clustered):
    workflow, jobs = clustered
    assert all(job["JobState"] == "COMPLETED" for job in jobs)
    rules = sorted(rule_of(job) for job in jobs)
    single = ["render_scenes", "index_dataset"] + ["extract_shard"] * 3 + ["seal_store"] * 3
    single += ["train_model"] * 2 + ["encode_testset"] * 2
    assert len(jobs) == len(single) + 1, f"the scores are one job: {rules}"
    assert [rule for rule in rules if rule in single] == sorted(single)
    for path in ("evaluation/region", "evaluation/grid", "ensembles/both"):
        metrics = json.loads((workflow.results / path / "tiny_test" / "metrics.json").read_text())
        assert metrics["images"] == 10
    assert (workflow.results / "report" / "index.html").is_file()


def test_gpu_jobs_take_turns_on_one_gpu(clustered):
    _, jobs = clustered
    gpu_jobs = [job for job in jobs if "gpu" in job.get("TresPerJob", "")]
    assert {rule_of(job) for job in gpu_jobs} == {"extract_shard", "train_model", "encode_testset"}
    assert len(gpu_jobs) == 7
    gpu_jobs.sort(key=lambda job: job["StartTime"])
    for earlier, later in zip(gpu_jobs, gpu_jobs[1:], strict=False):
        assert later["StartTime"] >= earlier["EndTime"], (earlier["JobId"], later["JobId"])
    # They were asked for together and had to wait: the test would see nothing if Snakemake had sent them one by one.
    extractions = [job for job in gpu_jobs if rule_of(job) == "extract_shard"]
    assert max(job["SubmitTime"] for job in extractions) < min(job["EndTime"] for job in extractions)


def test_overhead_is_reported(clustered, capsys):
    """Seconds that Slurm counts against seconds that commands work, where a benchmark file says those."""
    workflow, jobs = clustered
    useful = {}
    for file in (workflow.results / "benchmarks").rglob("*.tsv"):
        rule = file.relative_to(workflow.results / "benchmarks").parts[0]
        header, row = (line.split("\t") for line in file.read_text().splitlines()[:2])
        useful[rule] = useful.get(rule, 0) + float(row[header.index("s")])
    slurm = {rule: sum(seconds(job) for job in jobs if rule_of(job) == rule) for rule in useful}
    assert set(useful) == {"extract_shard", "train_model", "encode_testset"}
    with capsys.disabled():
        total = sum(map(seconds, jobs))
        print(f"\n{len(jobs)} Slurm jobs, {total:.0f} s; of them with a benchmark:")
        for rule in useful:
            print(f"  {rule}: {slurm[rule]:.0f} s in Slurm, {useful[rule]:.1f} s useful")
    # Slurm rounds to seconds.
    assert all(slurm[rule] + 3 >= useful[rule] > 0 for rule in useful)


def test_a_run_trains_as_two_tasks(clustered, cluster, no_job_left):
    """As on two nodes: one job, two tasks that srun starts, one training; by options of the profile alone."""
    workflow, before = clustered
    target = "results/runs/region/model.safetensors"
    (workflow.folder / target).unlink()
    resources = ["tasks=2", "tasks_per_gpu=0", "mpi=srun", "launcher=srun --ntasks=2 --kill-on-bad-exit=1"]
    # Without it the finished training's weights would be taken as they are.
    code = start(
        workflow, cluster, target, "--force", "--set-resources", *(f"train_model:{resource}" for resource in resources)
    ).wait(300)
    assert code == 0, output(workflow)
    jobs = jobs_of(cluster, workflow)[len(before) :]
    assert [(rule_of(job), job["NumTasks"], job["JobState"]) for job in jobs] == [("train_model", "2", "COMPLETED")]
    log = (workflow.results / "logs" / "train_model" / "region.log").read_text()
    assert log.count("2 processes train as one") == 1 and log.count("epoch 1/1: loss") == 1, log
    assert (workflow.folder / target).is_file()


def test_a_failing_job_gets_more_memory_and_its_log_is_shown(make_workflow, cluster, no_job_left):
    config = {"datasets": {"bad": {"source": "folder", "images": "images", "captions": "captions.tsv"}}}
    workflow = make_workflow(config)
    (workflow.folder / "images").mkdir()
    (workflow.folder / "captions.tsv").write_text("nonsense\n")
    code = start(workflow, cluster, "index", "--retries", "1", config=config).wait(200)
    text = output(workflow)
    assert code != 0, text
    jobs = jobs_of(cluster, workflow)
    assert [job["JobState"] for job in jobs] == ["FAILED", "FAILED"], text
    assert memory_mb(jobs[1]) == 2 * memory_mb(jobs[0])
    assert jobs[1]["TimeLimit"] > jobs[0]["TimeLimit"]
    log = (workflow.results / "logs" / "index_dataset" / "bad.log").read_text().strip()
    assert log.startswith("error: ") and log.splitlines()[0] in text


def test_a_killed_master_is_taken_up_again(clustered, cluster, no_job_left):
    """SIGKILL while one shard's job runs and one waits: the second call minds neither, nor what was sealed before."""
    workflow, _ = clustered
    features = workflow.results / "tiny" / "features"
    targets = [f"results/tiny/features/{feature}.zarr/zarr.json" for feature in ("grids", "panoptic", "regions")]
    for feature in ("grids", "regions"):
        (features / f"{feature}.receipts" / "0.json").unlink()
        (features / f"{feature}.zarr" / "zarr.json").unlink()
    kept = [*features.glob("panoptic.*/**/*"), *workflow.results.glob("tiny/index/*")]
    before = {path: path.stat().st_mtime_ns for path in kept if path.is_file()}
    known = len(jobs_of(cluster, workflow))

    def new_jobs() -> list[dict[str, str]]:
        return jobs_of(cluster, workflow)[known:]

    first = start(workflow, cluster, *targets)
    end = time.monotonic() + 200
    while sorted(job["JobState"] for job in new_jobs()) != ["PENDING", "RUNNING"]:
        assert first.poll() is None and time.monotonic() < end, output(workflow)
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()

    locked = start(workflow, cluster, *targets)
    assert locked.wait(100) != 0 and "--unlock" in output(workflow)
    assert start(workflow, cluster, *targets, "--unlock").wait(100) == 0, output(workflow)
    orphans = new_jobs()
    assert any(job["JobState"] in ("RUNNING", "PENDING") for job in orphans), "orphans are what this is about"
    assert start(workflow, cluster, *targets).wait(300) == 0, output(workflow)
    again = sorted(rule_of(job) for job in new_jobs()[len(orphans) :])
    # A shard whose orphan has ended by then is there and whole; one that is at work or waits is made again.
    assert again in [["extract_shard"] * shards + ["seal_store"] * 2 for shards in range(3)]
    assert all((workflow.folder / target).is_file() for target in targets)
    assert {path: path.stat().st_mtime_ns for path in kept if path.is_file()} == before


def test_the_generic_profile_submits_with_sbatch(make_workflow, cluster, no_job_left):
    config = {"datasets": {"tiny": TINY["datasets"]["tiny"] | {"shards": 1}}}
    workflow = make_workflow(config)
    target = "results/tiny/features/grids.zarr/zarr.json"
    code = start(workflow, cluster, target, config=config, profile="generic").wait(300)
    assert code == 0, output(workflow)
    jobs = jobs_of(cluster, workflow)
    rules = ["render_scenes", "index_dataset", "extract_shard", "seal_store"]
    assert [(job["JobName"], job["JobState"]) for job in jobs] == [(rule, "COMPLETED") for rule in rules]
    assert [("gpu:1" in job.get("TresPerNode", "")) for job in jobs] == [False, False, True, False]
    assert (workflow.folder / target).is_file()


def test_the_generic_profile_notices_a_job_that_slurm_ended(make_workflow, cluster, no_job_left):
    """Such a job says nothing to Snakemake itself."""
    config = {"datasets": {"tiny": TINY["datasets"]["tiny"]}}
    workflow = make_workflow(config)
    target = "results/tiny/scenes"
    master = start(workflow, cluster, target, "--retries", "0", config=config, profile="generic")
    end = time.monotonic() + 100
    while not jobs_of(cluster, workflow):
        assert master.poll() is None and time.monotonic() < end, output(workflow)
        time.sleep(0.05)
    cluster.cancel_all()
    assert master.wait(100) != 0
    assert "Error in rule render_scenes" in output(workflow)
