"""The compose file and the Kubernetes objects hang together. No container engine is asked."""

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage.database import open_database
from schemas.settings import Settings
from tests.infra.files import INFRA, compose, containers, documents, objects, of_kind, pods
from workers.api.app import build_services, create_app
from workers.router import Router

YAMLS = sorted(INFRA.rglob("*.yaml"))


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Paths of the gateway's OpenAPI."""
    settings = Settings(workspace=tmp_path_factory.mktemp("routes"))
    database = open_database(settings.resolved_database_url)
    services = build_services(settings, database, Router(settings))
    paths = set(create_app(services).openapi()["paths"])
    services.writer.close()
    database.close()
    return paths


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(INFRA)))
def test_yaml_parses_to_mappings(path: Path) -> None:
    found = documents(path)
    assert found and all(isinstance(document, dict) for document in found)


def test_compose_services_hang_together() -> None:
    whole = compose()
    services: dict[str, dict[str, Any]] = whole["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= services.keys(), name
        assert set(service.get("networks", [])) <= whole["networks"].keys(), name
        named = {mount.split(":")[0] for mount in service.get("volumes", []) if not mount.startswith(".")}
        assert named <= whole["volumes"].keys(), name
        assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys(), name
        depended = service.get("depends_on", {})
        for other, how in depended.items() if isinstance(depended, dict) else ():
            if how["condition"] == "service_healthy":
                assert "test" in services[other]["healthcheck"], (name, other)
    assert {
        n for s in services.values() for m in s.get("volumes", []) if not (n := m.split(":")[0]).startswith(".")
    } == set(whole["volumes"])


def test_the_page_says_what_the_limits_add_up_to() -> None:
    limits = [service["deploy"]["resources"]["limits"] for service in compose()["services"].values()]
    megabytes = sum(int(re.sub("G$", "000", one["memory"]).removesuffix("M")) for one in limits)
    said = re.search(r"limits add up to (\d+) CPUs and (\d+) GB", (INFRA / "README.md").read_text())
    assert said is not None
    assert [int(n) for n in said.groups()] == [sum(int(one["cpus"]) for one in limits), round(megabytes / 1000)]


def test_compose_images_are_pinned_and_only_the_doors_are_open() -> None:
    services = compose()["services"]
    images = {service["image"] for service in services.values()}
    others = {image for image in images if not image.startswith("${IMAGE")}
    assert others and all(re.search(r":[\w.-]*\d[\w.-]*$", image) for image in others)
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(ports) == {"proxy", "dashboard"}
    assert all("127.0.0.1" in str(port) for door in ports.values() for port in door)


def test_compose_takes_secrets_from_the_env_file_only() -> None:
    secret = re.compile("PASSWORD|SECRET|TOKEN|AUTH_STRING|ACCESS_KEY")
    for name, service in compose()["services"].items():
        for variable, value in service.get("environment", {}).items():
            if secret.search(variable) and not variable.endswith("_MODE"):
                assert "${" in str(value), (name, variable)


def test_compose_probes_hit_routes(routes: set[str]) -> None:
    text = (INFRA / "Containerfile").read_text()
    assert set(re.findall(r"127\.0\.0\.1:8700(/\w*)", text)) <= routes
    proxy = compose()["services"]["proxy"]["healthcheck"]["test"][-1]
    assert proxy.removeprefix("http://127.0.0.1:8080") in routes
    (scrape,) = documents(INFRA / "monitoring/prometheus.yaml")[0]["scrape_configs"]
    assert scrape["metrics_path"] in routes


def test_kubernetes_objects_have_names_and_are_there_once() -> None:
    found = objects()
    keys = [(o["apiVersion"], o["kind"], o["metadata"]["name"]) for o in found]
    assert len(set(keys)) == len(keys) > 15


def test_kubernetes_selectors_match_pods() -> None:
    labels = [pod["metadata"]["labels"] for _, pod in pods()]

    def matches(selector: dict[str, Any]) -> bool:
        wanted = selector.get("matchLabels", {})
        among = {e["key"]: e["values"] for e in selector.get("matchExpressions", [])}
        return any(
            all(found.get(k) == v for k, v in wanted.items()) and all(found.get(k) in v for k, v in among.items())
            for found in labels
        )

    for found in of_kind("Deployment", "StatefulSet"):
        own = found["spec"]["template"]["metadata"]["labels"].items()
        assert found["spec"]["selector"]["matchLabels"].items() <= own
        assert found["spec"]["selector"]["matchLabels"].items() >= {("app", found["metadata"]["name"])}
    for found in of_kind("Service"):
        assert matches({"matchLabels": found["spec"]["selector"]}), found["metadata"]["name"]
    for found in of_kind("PodDisruptionBudget"):
        assert matches(found["spec"]["selector"])
    policies = of_kind("NetworkPolicy")
    assert any(policy["spec"]["podSelector"] == {} and "ingress" not in policy["spec"] for policy in policies)
    for policy in policies:
        assert matches(policy["spec"]["podSelector"])
        for rule in policy["spec"].get("ingress", []):
            inside = [source["podSelector"] for source in rule["from"] if "namespaceSelector" not in source]
            assert all(matches(selector) for selector in inside), policy["metadata"]["name"]


def test_kubernetes_ports_are_declared() -> None:
    named = {
        port["name"]: port["containerPort"] for _, container in containers() for port in container.get("ports", [])
    }
    for found in of_kind("Service"):
        pod = next(pod for _, pod in pods() if pod["metadata"]["labels"].items() >= found["spec"]["selector"].items())
        ports = {port["name"] for container in pod["spec"]["containers"] for port in container.get("ports", [])}
        assert {port["targetPort"] for port in found["spec"]["ports"]} <= ports
    (ingress,) = of_kind("Ingress")
    backend = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    service = next(s for s in of_kind("Service") if s["metadata"]["name"] == backend["name"])
    assert backend["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}
    assert ingress["spec"]["rules"][0]["host"] in _gateway_hosts()
    for policy in of_kind("NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            assert {port["port"] for port in rule.get("ports", [])} <= named.keys()


def _gateway_hosts() -> str:
    gateway = next(c for name, c in containers() if name == "Deployment gateway gateway")
    return next(str(e["value"]) for e in gateway["env"] if e["name"] == "CLICKLOOP_ALLOWED_HOSTS")


def test_kubernetes_probes_hit_routes_under_a_name_that_the_gateway_answers_to(routes: set[str]) -> None:
    gateway = next(c for name, c in containers() if name == "Deployment gateway gateway")
    probes = [gateway[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert {probe["path"] for probe in probes} <= routes
    for probe in probes:
        (header,) = probe["httpHeaders"]
        assert header["name"] == "Host" and header["value"] in _gateway_hosts()
    template = next(pod for name, pod in pods() if name == "Deployment gateway")
    assert template["metadata"]["annotations"]["prometheus.io/path"] in routes
    assert "$(POD_IP)" in _gateway_hosts()


def test_kubernetes_containers_are_bounded_and_unprivileged() -> None:
    for name, container in containers():
        resources = container["resources"]
        assert {"cpu", "memory"} <= resources["requests"].keys() and "memory" in resources["limits"], name
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }, name
    for name, pod in pods():
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True, name
        mounts = {m["name"] for c in pod["spec"]["containers"] for m in c.get("volumeMounts", [])}
        claims = next(
            (
                o["spec"].get("volumeClaimTemplates", [])
                for o in objects()
                if name == f"StatefulSet {o['metadata']['name']}"
            ),
            [],
        )
        assert mounts == {v["name"] for v in pod["spec"].get("volumes", [])} | {
            c["metadata"]["name"] for c in claims
        }, name


def test_kubernetes_secrets_and_maps_that_are_used_exist() -> None:
    keys = {("secretRef", o["metadata"]["name"]): set(o["stringData"]) for o in of_kind("Secret")}
    keys |= {("configMapRef", o["metadata"]["name"]): set(o["data"]) for o in of_kind("ConfigMap")}
    used = 0
    for name, container in containers():
        for source in container.get("envFrom", []):
            ((kind, ref),) = source.items()
            assert (kind, ref["name"]) in keys, name
            used += 1
        for variable in container.get("env", []):
            if ref := variable.get("valueFrom", {}).get("secretKeyRef"):
                assert ref["key"] in keys["secretRef", ref["name"]], name
                used += 1
    assert used > 15
    for cluster in of_kind("RayCluster"):
        assert "auth_token" in keys["secretRef", cluster["spec"]["authOptions"]["secretName"]]


def test_only_nodes_of_ray_attach_to_it() -> None:
    for name, container in containers():
        if container.get("args", [""])[0] == "join-ray":
            pod = next(pod for n, pod in pods() if name.startswith(f"{n} "))
            assert pod["metadata"]["labels"]["ray-node"] == "true", name
            assert any(e["name"] == "RAY_AUTH_TOKEN" for e in container["env"]), name
    for name, service in compose()["services"].items():
        if service.get("command", [""])[0] == "join-ray":
            assert "RAY_AUTH_TOKEN" in service["environment"], name
