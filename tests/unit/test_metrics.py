"""Metrics: what many processes count is one sum that never falls; dashboard and alert rules name metrics that exist."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway import metricfiles, metrics, metrics_read, steps
from gateway.audit_notary import keep_head
from gateway.bootstrap import Gateway
from gateway.index_rows import CandidateFacts, InstanceRow
from gateway.instance import Form
from gateway.jobs import MemoryQueue
from gateway.settings import Destination
from tests.fakes import part10, take_in

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy/prometheus/palimpsest.rules.yml"
DASHBOARD = ROOT / "deploy/grafana/palimpsest.json"

#: Counts, forks, counts on in the child; says so, and stays until it is killed.
PROCESS = """
import os, sys, time
from pathlib import Path
from gateway import metricfiles, metrics
metricfiles.share(Path(sys.argv[1]), sys.argv[2])
metrics.RECEIVED.labels(source="dimse", outcome="new").inc(2)
metrics.ACCEPT_SECONDS.labels(source="dimse").observe(0.3)
if os.fork() == 0:
    metrics.RECEIVED.labels(source="dimse", outcome="new").inc(5)
    metrics.ACCEPT_SECONDS.labels(source="dimse").observe(0.03)
    print(os.getpid(), flush=True)
    time.sleep(600)
    os._exit(0)
time.sleep(600)
"""


def start(folder: Path, role: str) -> tuple[subprocess.Popen[str], int]:
    argv = [sys.executable, "-c", PROCESS, str(folder), role]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def values(text: bytes | str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    content = text.decode() if isinstance(text, bytes) else text
    families = list(text_string_to_metric_families(content))
    names = [family.name for family in families]
    assert len(names) == len(set(names)), "a family twice is no valid exposition"
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def total(folder: Path, name: str, **labels: str) -> float:
    return values(metricfiles.exposed(folder)).get((name, frozenset(labels.items())), 0.0)


def test_counts_of_all_processes_are_one_sum_that_no_death_lowers(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    new = {"source": "dimse", "outcome": "new"}
    assert metricfiles.exposed(folder) == b"" and metricfiles.roles(folder) == {}
    first, first_child = start(folder, "listener")
    second, second_child = start(folder, "encode")
    assert total(folder, "palimpsest_received_total", **new) == 14
    assert metricfiles.roles(folder) == {"listener": 2, "encode": 2}
    for pid in (first.pid, first_child):
        os.kill(pid, signal.SIGKILL)
    first.wait()
    wait_until_gone(first_child)
    assert metricfiles.roles(folder) == {"encode": 2}
    for _ in range(2):  # the first look buries the dead
        assert total(folder, "palimpsest_received_total", **new) == 14
        assert total(folder, "palimpsest_accept_seconds_count", source="dimse") == 4
        assert total(folder, "palimpsest_accept_seconds_bucket", source="dimse", le="0.05") == 2
        assert total(folder, "palimpsest_process_ends_total", role="listener") == 2
    left = sorted(path.name for path in folder.iterdir() if "listener" in path.name)
    assert left == []
    third, third_child = start(folder, "listener")  # another life counts on
    assert total(folder, "palimpsest_received_total", **new) == 21
    for pid in (second.pid, second_child, third.pid, third_child):
        os.kill(pid, signal.SIGKILL)
    for process in (second, third):
        process.wait()
    for pid in (second_child, third_child):
        wait_until_gone(pid)
    assert total(folder, "palimpsest_received_total", **new) == 21
    assert sorted(path.name for path in folder.glob("*.db")) == ["counter_dead.db", "histogram_dead.db"]


def wait_until_gone(pid: int) -> None:
    from tests.running import until

    def gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):  # not there, or gone between opening and reading
            return True

    assert until(gone)


def test_a_torn_file_of_a_dead_process_stops_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    (folder / "encode.host.1.aa.lock").touch()
    (folder / "counter_encode.host.1.aa.db").write_bytes(b"\xff\x00\x00\x00\0\0\0\0\x10\0\0\0torn")
    (folder / "histogram_encode.host.1.aa.db").write_bytes(b"")
    assert b'palimpsest_process_ends_total{role="encode"} 1.0' in metricfiles.exposed(folder)


def test_labels_take_few_values_whatever_is_sent() -> None:
    assert metrics.modality_label("CT") == "CT" and metrics.modality_label(None) == "unknown"
    assert {metrics.modality_label(f"X{n}") for n in range(1000)} == {"other"}
    assert metrics.coder_label("learned+jxl") == "learned" and metrics.coder_label(None) == "whole"
    assert {metrics.coder_label(f"c{n}") for n in range(1000)} == {"other"}


def test_calling_ae_titles_are_labels_only_if_they_are_on_the_list(gw: Gateway) -> None:
    row = replace(take_in(gw, part10()).row, calling_ae="LISTED")  # no other test's
    steps.accepted(row, steps.now(), outcome="new", known_title=True)
    steps.accepted(replace(row, calling_ae="STRANGER"), steps.now(), outcome="new", known_title=False)
    titles = {
        labels["calling_ae"]
        for family in metrics.RECEIVED_FROM.collect()
        for labels in (sample.labels for sample in family.samples)
    }
    assert {"LISTED", "other"} <= titles and "STRANGER" not in titles


def every_metric(gw: Gateway, row: InstanceRow) -> str:
    """An exposition in which everything that can be counted was counted once."""
    labels = {"modality": "CT", "coder": "learned"}
    steps.accepted(row, steps.now(), outcome="new", known_title=False)
    for step in ("encode", "verify", "archive"):
        steps.done(step, [row], steps.now())
    steps.archived(row)
    steps.retrieved("rendered:png:1", steps.now(), "success")
    metrics.FORWARD_SECONDS.labels(destination="pacs", outcome="done").observe(1)
    metrics.REFUSED.labels(source="dimse", reason="bad-uid").inc()
    metrics.WAKE_UPS_FAILED.labels(reason="queue-unavailable").inc()
    metrics.TASKS_FAILED.labels(task="palimpsest.encode", reason="x").inc()
    metrics.PROOFS_FAILED.labels(reason="pixel-digest").inc()
    metrics.CACHE.labels(result="hit").inc()
    metrics.RETRIEVED.labels(kind="instances", outcome="success").inc()
    metrics.ARCHIVED.labels(**labels).inc()
    return metrics_read.exposition(gw, gw.queue.depths, lambda: {"database": True}).decode()


@pytest.fixture
def shown(settings: Any, memory_queue: MemoryQueue) -> Any:
    from gateway.bootstrap import build

    there = Destination(name="pacs", kind="dicom", port=11112, ae_title="PACS")
    gateway = build(settings.model_copy(update={"destinations": (there,)}), queue=memory_queue)
    (gateway.settings.quarantine_dir / "1-coded.dcm").write_bytes(b"x")
    row = take_in(gateway, part10()).row
    assert gateway.index.claim(row.id, "w", 60) is not None
    gateway.index.set_candidate(row.id, "w", CandidateFacts("c" * 64, 100, Form.CODED, "", "2.25.7", coder="learned"))
    gateway.index.set_verified(row.id, "w", {})
    gateway.index.set_archived(row.id, "w", key="aa/2.25.7.dcm", digest="c" * 64, size=100, destinations=["pacs"])
    keep_head(gateway)
    yield every_metric(gateway, gateway.index.get(row.id))
    gateway.close()


#: known to the scraper itself, or counted only once processes share a folder and one has ended
ELSEWHERE = {"up", "palimpsest_process_ends_total"}


def named(expression: str) -> set[str]:
    return set(
        re.findall(r"\b(?:palimpsest_[a-z_]+|up)\b", re.sub(r"\{[^}]*\}|\b(by|on) \([a-z_, ]+\)", "", expression))
    )


def expressions() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    rules = [rule["expr"] for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]
    assert len(panels) > 25 and len(rules) > 14
    return panels + rules


def test_dashboard_and_rules_name_metrics_that_exist(shown: str) -> None:
    names = {name for name, _ in values(shown)} | ELSEWHERE
    missing = {name for expression in expressions() for name in named(expression)} - names
    assert missing == set()
    for wanted in (
        "palimpsest_quarantined_objects 1.0",
        'palimpsest_dead_letters{destination="pacs"} 0.0',
        'palimpsest_circuit_open{destination="pacs"} 0.0',
        "palimpsest_key_backup_timestamp_seconds 0.0",
        'palimpsest_dependency_up{dependency="database"} 1.0',
        'palimpsest_processes{role="listener"} 0.0',
    ):
        assert wanted in shown
    assert "Patient" not in shown and "1.2.840" not in shown


def test_a_database_that_is_away_leaves_the_other_metrics(gw: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway.errors import Unavailable

    def away(*_: object) -> Any:
        raise Unavailable("database-unavailable", "away")

    for name in ("counts", "queue_ages"):
        monkeypatch.setattr(type(gw.index), name, away)
    text = metrics_read.exposition(gw, gw.queue.depths, lambda: {"database": False}).decode()
    assert 'palimpsest_dependency_up{dependency="database"} 0.0' in text and "palimpsest_disk_free_bytes" in text
    assert "palimpsest_instances{" not in text


def test_queue_ages_are_those_of_what_is_due(gw: Gateway) -> None:
    assert gw.index.queue_ages() == {"index": 0.0, "encode": 0.0, "forward": 0.0}
    row = take_in(gw, part10()).row
    ages = gw.index.queue_ages()
    assert ages["encode"] > 0 and ages["index"] > 0 and ages["forward"] == 0
    assert gw.index.claim(row.id, "somebody", 60) is not None
    assert gw.index.queue_ages()["encode"] == 0


@pytest.fixture
def promtool() -> Callable[..., str]:
    program = shutil.which("promtool")
    if program is None:
        assert os.environ.get("PALIMPSEST_REQUIRE_PEERS") != "1", "promtool is required (apt install prometheus)"
        pytest.skip("needs promtool (apt install prometheus)")

    def run(*arguments: str | Path, stdin: str | None = None) -> str:
        argv = [program, *map(str, arguments)]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.peers
def test_every_alert_fires_on_what_it_is_for(promtool: Callable[..., str], shown: str, tmp_path: Path) -> None:
    tests = RULES.with_name("palimpsest.rules.test.yml")
    content = yaml.safe_load(tests.read_text("utf-8"))
    tested = {each["alertname"] for one in content["tests"] for each in one["alert_rule_test"] if "exp_alerts" in each}
    rules = {rule["alert"] for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]}
    assert tested == rules
    assert "SUCCESS" in promtool("test", "rules", tests)
    config = tmp_path / "prometheus.yml"
    text = RULES.with_name("prometheus.yml").read_text("utf-8")
    (tmp_path / "token").write_text("x")
    config.write_text(text.replace("/etc/prometheus/palimpsest.token", str(tmp_path / "token")))
    shutil.copy(RULES, tmp_path)
    assert "SUCCESS" in promtool("check", "config", config)
    panels = [{"record": f"panel:{n}", "expr": expression} for n, expression in enumerate(expressions())]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": panels}]}))
    assert f"{len(panels)} rules found" in promtool("check", "rules", tmp_path / "panels.yml")
    assert promtool("check", "metrics", stdin=shown) == ""
