"""What every rule looks like, read from the files: documented, in one order, nothing asked for that Plan does not know."""

import inspect
import re
from types import SimpleNamespace

import pytest
import yaml

from core import layout
from core.console import UserError
from rules.plan import Plan
from rules.targets import TARGETS, check_targets, of_images_alone
from settings import load_settings

ORDER = (
    (
        "input output log benchmark wildcard_constraints localrule priority conda threads resources params message shell"  # as read from above
    ).split()
)


@pytest.fixture(scope="module")
def files(repository):
    return {path.name: path.read_text() for path in (repository / "Snakefile", *(repository / "rules").glob("*.smk"))}


@pytest.fixture(scope="module")
def rules(files):
    """Name -> body."""
    found = [m for text in files.values() for m in re.findall(r"^rule (\w+):\n((?:    .*\n|\n)+)", text, re.M)]
    assert len(found) == len(dict(found)) > 20
    return dict(found)


def test_each_file_says_what_it_is_about(files):
    assert not [name for name, text in files.items() if not re.match(r"# [A-Z].{20}", text)]


def test_each_rule_says_what_it_is_for(rules):
    assert not [name for name, body in rules.items() if not re.match(r'    "+[A-Z].+\.', body)]


def test_each_job_announces_itself_in_a_line(rules):
    """Else Snakemake prints a dozen lines for each; a line that left out the shard would not tell two jobs apart."""
    working = {name: body for name, body in rules.items() if "    shell:" in body}
    assert len(working) > 15
    for name, body in working.items():
        message = re.search(r'^    message:\n        "([A-Z].+[^.])"$', body, re.M)
        assert message, name
        # The log's path names every wildcard of the rule.
        log = re.search(r'layout\.log\(WORK, "(.+?)"', body)
        if log:
            assert set(re.findall(r"\{(\w+)\}", log[1])) == set(re.findall(r"\{wildcards\.(\w+)\}", message[1])), name


def test_each_rule_is_in_the_one_order(rules):
    for name, body in rules.items():
        parts = re.findall(r"^    (\w+):", body, re.M)
        assert parts == sorted(parts, key=ORDER.index), name


def test_rules_are_declarations(files):
    for name, text in files.items():
        assert not re.search(r"\blambda\b|^ +(script|run|notebook):", text, re.M), name


def test_rules_compose_no_path_of_the_results_by_hand(files):
    for name, text in files.items():
        assert not re.search(r"f\"\{(RESULTS|WORK)\}/", text), name


def test_what_rules_ask_for_is_there(files, repository, monkeypatch):
    """A misspelt name in a rule would else be found by the first job of it."""
    monkeypatch.chdir(repository)
    config = yaml.safe_load((repository / "config.yaml").read_text())
    config["search"] = {"scenes": {"dataset": "scenes", "runs": ["grid"]}}
    plan = Plan(load_settings(config))
    text = "\n".join(files.values())
    methods, functions = set(re.findall(r"PLAN\.(\w+)", text)), set(re.findall(r"layout\.(\w+)", text))
    assert len(methods) > 20 and not [name for name in methods if not hasattr(plan, name)]
    assert len(functions) > 10 and not [name for name in functions if not hasattr(layout, name)]
    job = SimpleNamespace(dataset="scenes", feature="grids", run="grid", testset="dusk_test", search="scenes")
    places = set(re.findall(r'PLAN\.ask\("(.+?)"\)', text))
    assert len(places) > 5
    for place in places:
        plan.ask(place)(job)
    public = {name for name, _ in inspect.getmembers(Plan, inspect.isfunction) if not name.startswith("_")}
    assert public - methods <= {"sealed", "run_file", "index", "embeddings", "needed_features"}, "asked for by no rule"


@pytest.mark.parametrize("profile", ["slurm", "generic", "kubernetes"])
def test_cluster_profiles_name_every_heavy_rule(profile, rules, files, repository):
    """What a profile does not name runs with the default: little memory, one thread, no GPU."""
    heavy = {name for name, body in rules.items() if "gpu=GPUS_PER_JOB" in body}
    copies = re.findall(r"^use rule (\w+) as (\w+) with:", "\n".join(files.values()), re.M)
    heavy |= {copy for origin, copy in copies if origin in heavy}
    assert heavy >= {"extract_shard", "train_model", "encode_testset", "score_pairs", "build_search"}
    content = yaml.safe_load((repository / "profiles" / profile / "config.yaml").read_text())
    named, also = content["set-resources"], {"seal_store", "compute_metrics", "compute_ensemble"}
    assert heavy | also <= named.keys() and heavy <= content["set-threads"].keys()
    assert all(named[rule]["gpu"] == 1 and named[rule]["mem_mb"] for rule in heavy)
    assert profile == "kubernetes" or named["score_pairs"]["runtime"]


@pytest.mark.parametrize(
    ("words", "alone"),
    [
        ("regions --cores 2", True),
        ("--cores 2 grids panoptic", True),
        ("regions train", False),
        ("regions results/a.txt", False),
        ("train --until regions", False),
        ("--cores 2", False),
        ("index", False),
    ],
)
def test_what_is_asked_for_may_need_no_captions(words, alone):
    assert of_images_alone(["snakemake", *words.split()]) == alone


def test_targets_by_name(repository, monkeypatch):
    text = (repository / "rules/targets.smk").read_text()
    assert ("all", *re.findall(r"^rule (\w+):", text, re.MULTILINE)) == TARGETS
    asked = []
    monkeypatch.setattr("rules.targets._targets", lambda words: asked.append(words) or ["train", words[1]])
    check_targets(["snakemake", "train", "build_report", "results/a.txt", "a.txt", "-n"], [*TARGETS, "build_report"])
    assert asked == []  # Snakemake's parser takes a moment
    check_targets(["snakemake", "train", "--quiet", "rules"], TARGETS)
    with pytest.raises(UserError, match="no target 'trian'; did you mean 'train'. Targets are all, index, regions"):
        check_targets(["snakemake", "trian", "--quiet", "rules"], TARGETS)
