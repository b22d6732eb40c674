"""Metrics, from the chart's monitors through a real Prometheus to its dashboard and alerts."""

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from api_server import api_server
from image_references import Images
from kubernetes_cluster import Cluster, KubectlError
from prometheus_server import Prometheus, running_prometheus
from releases import CHART, RELEASE, Release
from rendering import of_kind, rendered
from s3 import S3Server
from scrape_configs import discovery, scrape_config
from searches import BUCKET, Search, light_manifest

DASHBOARD = json.loads((CHART / "files/dashboard.json").read_text())
ALERTS = yaml.safe_load((CHART / "files/alerts.yaml").read_text())
RULES = {rule["alert"]: rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]}
NAME = "watched"
GPU = "example.com/gpu"
SECONDS = 12
"""How long a candidate takes: Prometheus takes up the targets that it is told of every 5 seconds, which nobody can
change, and a pod that is gone by then is never asked."""
QUERIES = {
    f"{panel['title']} {target['refId']}": target["expr"].replace("$namespace", RELEASE).replace("$name", NAME)
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
}
"""The dashboard's queries, asked of one search."""
_OF_SEARCH = f'{{__name__=~"evomerge_.*", namespace="{RELEASE}", name="{NAME}"}}'


@dataclass(frozen=True)
class Scene:
    """A Prometheus that watches the release's operators and workers, and a search whose candidates take seconds."""

    prometheus: Prometheus
    search: Search


@pytest.fixture(scope="module")
def scene(
    cluster: Cluster,
    helm: Callable[..., str],
    images: Images,
    installed: Release,
    s3: S3Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "alerts.yaml").write_text((CHART / "files/alerts.yaml").read_text())
    s3.make_bucket(BUCKET)
    keys = {key: s3.environment[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    secret = {"name": "s3-credentials", "namespace": RELEASE}
    cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": secret, "stringData": keys})
    faults = {"evaluate": f"sleep:{SECONDS}", "ps/1": "fail:NotFinite"}
    manifest = light_manifest(NAME, RELEASE, images.light_worker, s3, faults=faults)
    manifest["spec"]["worker"]["resources"]["limits"][GPU] = "1"
    monitors = _monitors(helm, installed)
    with ExitStack() as stack:
        targets = stack.enter_context(discovery(stack.enter_context(api_server(cluster))))
        scrapes = [scrape_config(monitor, targets) for monitor in monitors]
        config = {"global": {"evaluation_interval": "1s"}, "rule_files": ["alerts.yaml"], "scrape_configs": scrapes}
        prometheus = stack.enter_context(running_prometheus(folder, config))
        stack.enter_context(_gpus(cluster))
        search = Search.apply(cluster, manifest)
        yield Scene(prometheus, search)
        search.delete("--ignore-not-found")


def test_the_monitors_find_every_operator_and_the_workers(scene: Scene) -> None:
    prometheus = scene.prometheus
    operators = prometheus.wait_for("evomerge_leader", lambda found: len(found) == 2)
    assert sorted(series["value"][1] for series in operators) == ["0", "1"]
    assert {series["metric"]["namespace"] for series in operators} == {RELEASE}
    workers = prometheus.wait_for(f'evomerge_worker_tasks{{stage="baselines", {_labels()}}}')
    assert {series["value"][1] for series in workers} == {"1"}
    assert prometheus.wait_for(f'evomerge_worker_tasks{{stage="ps", {_labels()}}}')


def test_metrics_are_named_as_prometheus_wants_them(scene: Scene, cluster: Cluster) -> None:
    asked = (("evomerge_leader == 1", 8080), (f"evomerge_worker_tasks{{{_labels()}}}", 9464))
    for query, port in asked:
        text = _told(scene, cluster, query, port)
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
        ours = [line for line in done.stderr.splitlines() if line.startswith("evomerge")]
        assert (ours, done.stdout) == ([], "")


def _told(scene: Scene, cluster: Cluster, query: str, port: int) -> str:
    """What a pod that a query finds says of itself. A worker lives for seconds: one that has gone is passed over."""
    end = time.monotonic() + 60
    while True:
        pod = scene.prometheus.wait_for(query)[0]["metric"]
        place = f"/api/v1/namespaces/{pod['namespace']}/pods/{pod['pod']}:{port}/proxy/metrics"
        try:
            return cluster.kubectl("get", "--raw", place)
        except KubectlError:
            if time.monotonic() > end:
                raise


def test_every_query_of_the_dashboard_has_a_result_while_a_search_runs(scene: Scene) -> None:
    left = dict(QUERIES)
    end = time.monotonic() + 120
    while left and time.monotonic() < end:
        left = {name: query for name, query in left.items() if not scene.prometheus.query(query)}
        time.sleep(0.5)
    assert not left


def test_every_series_that_dashboard_and_alerts_name_has_the_labels_that_they_use(scene: Scene) -> None:
    """Asked of all that was ever scraped: the workers may be gone."""
    used = [use for query in (*QUERIES.values(), *RULES.values()) for use in _uses(query)]
    assert len({name for name, _ in used}) > 20
    selectors = {name + "{" + ", ".join(f'{label}!=""' for label in sorted(labels)) + "}" for name, labels in used}
    missing = [s for s in sorted(selectors) if not scene.prometheus.query(f"last_over_time({s}[10m])")]
    assert not missing


def test_the_figures_are_those_of_the_search(scene: Scene) -> None:
    status = scene.search.succeeds()
    candidates = [c for (stage, _), c in scene.search.candidates().items() if stage == "ps"]
    prometheus = scene.prometheus
    prometheus.wait_for(f'evomerge_search_phase{{phase="Succeeded", {_labels()}}} == 1')
    outcomes = prometheus.query(f"evomerge_search_candidates{{{_labels()}}}")
    assert _by(outcomes, "outcome") == {"Succeeded": 3, "Failed": 1}
    reasons = prometheus.query(f"evomerge_search_failed_candidates{{{_labels()}}} > 0")
    assert _by(reasons, "reason") == {"NotFinite": 1}
    best = max(c["status"]["fitness"] for c in candidates if c["status"]["outcome"] == "Succeeded")
    assert _by(prometheus.query(f"evomerge_search_best_fitness{{{_labels()}}}"), "name") == {NAME: best}
    assert status["best"] == f"{best:.4g}"
    phases = prometheus.query(f'evomerge_candidate_seconds_count{{stage="ps", {_labels()}}}')
    assert _by(phases, "phase") == {"wait": 4, "pull": 3, "evaluate": 3}
    everyone = scene.search.children("mergecandidates")
    hours = sum(c["status"]["seconds"]["total"] for c in everyone) / 3600
    for cost in ("Worker-hours A", "GPU-hours A"):
        [series] = prometheus.query(QUERIES[cost])
        assert float(series["value"][1]) == pytest.approx(hours)
    running = prometheus.query(f"evomerge_search_running{{{_labels()}}}")
    assert _by(running, "name") == {NAME: 0}


def test_no_alert_fires_for_a_search_that_goes_well(scene: Scene) -> None:
    scene.search.succeeds()
    rules = [rule for group in scene.prometheus.api("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"]: rule["health"] for rule in rules} == dict.fromkeys(RULES, "ok")
    assert scene.prometheus.query(f'ALERTS{{name=~"{NAME}|"}}') == []


def test_an_alert_fires_for_a_manifest_that_only_the_operator_refuses(
    scene: Scene, cluster: Cluster, images: Images, s3: S3Server
) -> None:
    manifest = light_manifest("refused", RELEASE, images.light_worker, s3)
    manifest["spec"]["evaluation"]["objectives"][0]["extract"] = "("
    search = Search.apply(cluster, manifest)
    firing = 'ALERTS{alertname="EvoMergeSearchFailed", alertstate="firing"}'
    [alert] = scene.prometheus.wait_for(firing)
    assert (alert["metric"]["namespace"], alert["metric"]["name"]) == (RELEASE, "refused")
    search.delete()
    scene.prometheus.wait_for(firing, lambda found: not found)


def test_the_series_of_a_search_go_when_it_is_deleted(scene: Scene) -> None:
    scene.search.succeeds()
    assert scene.prometheus.query(_OF_SEARCH)
    scene.search.delete()
    scene.prometheus.wait_for(_OF_SEARCH, lambda found: not found)
    assert scene.prometheus.query("evomerge_leader == 1")


def _monitors(helm: Callable[..., str], installed: Release) -> list[dict[str, Any]]:
    """The monitors that the release would have."""
    values = {**installed.values, "metrics": {m: {"enabled": True} for m in ("serviceMonitor", "podMonitor")}}
    documents = rendered(helm, values)
    return [*of_kind(documents, "ServiceMonitor"), *of_kind(documents, "PodMonitor")]


@contextmanager
def _gpus(cluster: Cluster) -> Iterator[None]:
    """While the context lasts a node says that it has eight."""
    node = f"node/{cluster.get('nodes')['items'][0]['metadata']['name']}"
    place = f"/status/capacity/{GPU.replace('/', '~1')}"
    patch = ["patch", node, "--subresource=status", "--type=json", "--patch"]
    cluster.kubectl(*patch, json.dumps([{"op": "add", "path": place, "value": "8"}]))
    try:
        yield
    finally:
        cluster.kubectl(*patch, json.dumps([{"op": "remove", "path": place}]))


def _labels() -> str:
    return f'namespace="{RELEASE}", name="{NAME}"'


def _by(series: list[dict[str, Any]], label: str) -> dict[str, float]:
    """The values of the series by one of their labels."""
    return {one["metric"][label]: float(one["value"][1]) for one in series}


def _uses(query: str) -> Iterator[tuple[str, set[str]]]:
    """Each metric of a query with the labels that the query uses of it: its own matchers, and all that is grouped or
    joined by."""
    grouped = {label for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", query) for label in re.split(r", *", group)}
    for name, matchers in re.findall(r"\b(evomerge_\w+)(?:\{([^}]*)\})?", query):
        yield name, grouped | set(re.findall(r"(\w+) *(?:=~|!=|!~|=)", re.sub(r'"[^"]*"', '""', matchers)))
