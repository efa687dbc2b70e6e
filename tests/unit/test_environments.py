"""The places that name versions agree with each other."""

import re
import tomllib

import pytest
import yaml

from extractors.settings import ENGINES, Detectron2


def locked(path) -> dict[str, set[str]]:
    versions: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9._-]+)==([^\s;\\]+)", path.read_text(), re.M):
        versions.setdefault(name, set()).add(version)
    return versions


def test_the_locks_cover_the_dependencies_and_agree(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    runtime, dev = locked(repository / "requirements/runtime.txt"), locked(repository / "requirements/dev.txt")
    direct = {re.match(r"[A-Za-z0-9_-]+", d).group(0) for d in project["project"]["dependencies"]}
    assert direct <= runtime.keys()
    assert {re.match(r"[A-Za-z0-9_-]+", d).group(0) for d in project["dependency-groups"]["dev"]} <= dev.keys()
    assert {name: dev.get(name) for name in runtime} == runtime


def test_locks_have_hashes_and_no_addresses(repository):
    for path in (repository / "requirements").glob("*.txt"):
        text = path.read_text()
        assert "://" not in text
        pins = re.findall(r"^[a-z0-9._-]+==.*$", text, re.M)
        assert pins and all(pin.endswith("\\") for pin in pins), path.name
        assert text.count("--hash=sha256:") >= len(pins)


@pytest.mark.parametrize(
    ("environment", "more"), [("pipeline", set()), ("detectron2", set()), ("transformers", {"transformers"})]
)
def test_the_conda_environments_have_the_locked_versions(repository, environment, more):
    environment = yaml.safe_load((repository / f"envs/{environment}.yaml").read_text())
    dev = locked(repository / "requirements/dev.txt")
    pins = dict(p.split("==") for p in next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict)))
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    direct = {re.match(r"[A-Za-z0-9_-]+", d).group(0) for d in project["project"]["dependencies"]}
    s3 = {re.match(r"[A-Za-z0-9_-]+", d).group(0) for d in project["dependency-groups"]["s3"]}
    assert pins.keys() == direct | s3 | more
    for name, version in pins.items():
        assert version in dev[name], name


def test_every_engine_has_an_environment_and_detectron2_one_commit(repository):
    assert {"pipeline", *ENGINES} - {"native"} == {path.stem for path in (repository / "envs").glob("*.yaml")}
    script = (repository / "envs/detectron2.post-deploy.sh").read_text()
    assert Detectron2.install.removeprefix("pip ") in script
    assert Detectron2.install in (repository / "docs/engines.md").read_text()


def test_the_images_install_the_locks_on_the_python_of_the_conda_environment(repository):
    pipeline = yaml.safe_load((repository / "envs/pipeline.yaml").read_text())
    python = next(d for d in pipeline["dependencies"] if str(d).startswith("python ")).split("=")[1]
    docker, apptainer = ((repository / "envs" / name).read_text() for name in ("Dockerfile", "apptainer.def"))
    assert f"\nFROM python:{python}-slim\n" in docker and f"\nFrom: python:{python}-slim\n" in apptainer
    for text in (docker, apptainer):
        copied = set(re.findall(r"^(?:COPY|   ) (requirements/.*) /opt/requirements", text, re.M))
        files = {name for line in copied for name in line.split()}
        assert files == {"requirements/uv.txt", "requirements/runtime.txt"}
        assert all((repository / name).is_file() for name in files)
        installed = re.findall(r"install .*--require-hashes -r /opt/requirements/(\S+)", text)
        assert installed == ["uv.txt", "runtime.txt"]


def test_installing_the_clone_says_what_to_do_instead(repository, monkeypatch):
    build = tomllib.loads((repository / "pyproject.toml").read_text())["build-system"]
    monkeypatch.syspath_prepend(str(repository / build["backend-path"][0]))
    backend = __import__(build["build-backend"])
    for hook in ("get_requires_for_build_wheel", "build_wheel", "build_editable", "build_sdist"):
        with pytest.raises(SystemExit, match="run from its clone(.|\n)*make demo(.|\n)*PYTHONPATH"):
            getattr(backend, hook)("folder")
