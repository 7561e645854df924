"""What infra/ names exists: settings, commands, modules, files, metrics, routes, versions."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from flows.cli import build_parser
from schemas.settings import Settings
from tests.infra.files import INFRA, KUBERNETES, ROOT, TEXTS, commands, compose, documents, of_kind
from workers.api.metrics import Metrics

MONITORING = INFRA / "monitoring"


def test_every_setting_exists() -> None:
    known = {f"CLICKLOOP_{name.upper()}" for name in Settings.model_fields} | {"CLICKLOOP_CONFIG"}
    named = {(path.name, name) for path in TEXTS for name in re.findall(r"CLICKLOOP_[A-Z_]+", path.read_text())}
    assert len({name for _, name in named}) > 8
    assert sorted((path, name) for path, name in named if name not in known) == []


def test_settings_have_values_that_the_program_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    services = [s["environment"] for s in compose()["services"].values() if "environment" in s]
    (config,) = of_kind("ConfigMap")
    checked = 0
    for environment in [*services, config["data"]]:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                if name.startswith("CLICKLOOP_"):
                    patch.setenv(name, re.sub(r"\$\{\w+:-(.*?)\}|\$\{\w+(:\?.*?)?\}", r"\1", str(value)))
                    checked += 1
            Settings()
    assert checked > 30


def test_every_command_is_one() -> None:
    parser = build_parser()
    before = {"join-ray", "--", "clickloop:cpu", *compose()["services"]}  # else it is a pool, a namespace, a database
    starts = [
        (words, index)
        for words in commands()
        for index, word in enumerate(words)
        if word == "clickloop" and (index == 0 or words[index - 1] in before)
    ]
    assert len(starts) > 12
    for words, index in starts:
        parser.parse_args(words[index + 1 :])


def test_every_module_that_is_run_exists() -> None:
    modules = {words[words.index("-m") + 1] for words in commands() if "-m" in words}
    assert {"workers.api", "flows.runner", "flows.deployments"} <= modules
    assert [name for name in sorted(modules) if importlib.util.find_spec(name) is None] == []


def test_pages_links_and_mounted_files_exist() -> None:
    links = [
        (page, link)
        for page in INFRA.rglob("*.md")
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    ]
    assert links
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []
    mounts = [mount for service in compose()["services"].values() for mount in service.get("volumes", [])]
    sources = [Path(mount.split(":")[0]) for mount in mounts if mount.startswith(".")]
    assert len(sources) > 4
    assert [str(path) for path in sources if not (INFRA / path).exists()] == []


def _exported() -> set[str]:
    """Names of the time series that a gateway exports."""
    names = set()
    for family in Metrics().registry.collect():
        endings = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
        names |= {family.name + ending for ending in endings}
    return names


def test_every_metric_is_exported_and_every_exported_one_is_shown() -> None:
    dashboard = (MONITORING / "grafana/dashboards/clickloop.json").read_text()
    panels = json.loads(dashboard)["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    alerts = [rule["expr"] for group in documents(MONITORING / "alerts.yaml")[0]["groups"] for rule in group["rules"]]
    shown = set(re.findall(r"clickloop_\w+", " ".join(queries)))
    exported = _exported()
    assert shown | set(re.findall(r"clickloop_\w+", " ".join(alerts))) <= exported
    families = {re.sub("_(bucket|count|sum)$", "", name) for name in exported}
    assert families == {re.sub("_(bucket|count|sum)$", "", name) for name in shown}
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_labels_of_queries_are_those_of_the_metrics() -> None:
    labels = {"le", "instance", "job"}
    for collector in vars(Metrics()).values():
        labels |= set(getattr(collector, "_labelnames", ()))
    text = "".join(path.read_text() for path in MONITORING.rglob("*") if path.is_file())
    used = {name for group in re.findall(r"by \(([^)]*)\)", text) for name in group.replace(" ", "").split(",")}
    used |= set(re.findall(r'[{,](\w+)=\\?"', text))
    assert {"stage", "code", "where"} <= used <= labels


def test_prometheus_asks_the_gateways_by_names_that_they_answer_to() -> None:
    (config,) = documents(MONITORING / "prometheus.yaml")
    (scrape,) = config["scrape_configs"]
    services = compose()["services"]
    for target in scrape["static_configs"][0]["targets"]:
        host, port = target.split(":")
        environment = services[host]["environment"]
        assert host in json.loads(re.sub(r"\$\{.*?\}", "x", environment["CLICKLOOP_ALLOWED_HOSTS"]))
        assert int(port) == environment["CLICKLOOP_PORT"]
    proxied = re.findall(r"server (\S+?):(\d+)", (INFRA / "compose/proxy.conf").read_text())
    assert sorted(f"{host}:{port}" for host, port in proxied) == sorted(scrape["static_configs"][0]["targets"])


def test_every_variable_of_the_compose_file_has_an_example_or_a_default() -> None:
    example = dict(re.findall(r"^(\w+)=(.*)$", (INFRA / "env.example").read_text(), re.MULTILINE))
    text = "\n".join(path.read_text() for path in INFRA.glob("compose*.yaml"))
    needed = set(re.findall(r"\$\{(\w+)\}", text)) | set(re.findall(r"\$\{(\w+):\?", text))
    assert needed <= example.keys()
    assert example.keys() <= set(re.findall(r"\$\{(\w+)", text))
    assert all(not value for name, value in example.items() if "PASSWORD" in name or "TOKEN" in name)


def test_the_image_has_what_the_wheel_has_and_base_images_are_pinned() -> None:
    text = (INFRA / "Containerfile").read_text()
    copied = re.findall(r"^COPY (\w+) \1$", text, re.MULTILINE)
    assert sorted(copied) == ["flows", "pipeline", "schemas", "workers"]
    kept = (ROOT / ".dockerignore").read_text().split()
    sources = [
        word
        for line in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", text, re.MULTILINE)
        for word in line.split()
    ]
    assert sources and all(f"!{source}" in kept and (ROOT / source).exists() for source in sources)
    assert {"wheel", "cpu", "gpu"} <= set(re.findall(r"^FROM .* AS (\S+)$", text, re.MULTILINE))
    stages = re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE)
    bases = set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) - {"${BASE}"} - set(stages)
    assert not bases
    assert re.search(r"^ARG BASE=python:3\.\d+\.\d+-\S+$", text, re.MULTILINE)
    assert re.search(r"^USER [1-9]\d*$", text, re.MULTILINE) and "HEALTHCHECK" in text


def test_ray_is_the_version_that_the_image_installs() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert [cluster["spec"]["rayVersion"] for cluster in of_kind("RayCluster")] == [pinned["ray"]]


def test_kustomize_lists_every_file() -> None:
    (kustomization,) = documents(KUBERNETES / "kustomization.yaml")
    files = {path.name for path in KUBERNETES.glob("*.yaml")} - {
        "kustomization.yaml",
        "secrets.example.yaml",
        "secrets.yaml",
    }
    assert files == set(kustomization["resources"])
