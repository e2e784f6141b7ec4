"""A gateway in processes, watched from outside: one exposition, one trace over them all, Flower, Prometheus."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage

from gateway.settings import Destination
from gateway.tokens import mint_token
from gateway.tracing import trace_id
from tests.running import Rig, free_port, until

pytestmark = pytest.mark.integration
CT = get_testdata_file("CT_small.dcm", download=False)
RULES = Path(__file__).resolve().parents[2] / "deploy/prometheus/palimpsest.rules.yml"


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP receiver: spans as (role, name, trace id, span id, parent id, attributes)."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str, int, int, int, dict[str, Any]]] = []
        self.raw: list[bytes] = []
        super().__init__(("127.0.0.1", 0), OtlpHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/traces"


class OtlpHandler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.raw.append(body)
        for batch in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = {each.key: each.value.string_value for each in batch.resource.attributes}
            for scope in batch.scope_spans:
                for span in scope.spans:
                    facts = {e.key: e.value.string_value or e.value.int_value for e in span.attributes}
                    ids = (int.from_bytes(one, "big") for one in (span.trace_id, span.span_id, span.parent_span_id))
                    assert span.start_time_unix_nano <= span.end_time_unix_nano
                    self.server.spans.append((resource["palimpsest.role"], span.name, *ids, facts))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    server = Collector()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Rig]:
    home = tmp_path_factory.mktemp("watched")
    (home / "out").mkdir()
    out = Destination(name="out", kind="filesystem", path=str(home / "out"))
    settings = {"destinations": (out,), "tracing_endpoint": collector.url, "flower": True, "exporter_port": free_port()}
    with Rig(home / "home", **settings) as made:
        made.start("broker")
        made.wait("broker", made.broker_answers)
        made.start("listener", "api", "encode", "forward", "retrieve", "sweep", "flower", "exporter")
        made.wait("listener", made.listens)
        yield made


@pytest.fixture(scope="module")
def web(rig: Rig) -> Iterator[Callable[..., httpx.Response]]:
    with httpx.Client(timeout=120, trust_env=False) as client:

        def get(path: str, role: str = "admin", port: int = rig.settings.http_port, **more: Any) -> httpx.Response:
            headers = {"Authorization": f"Bearer {mint_token(rig.gw, role, 'tester')}"} if role else {}
            return client.get(f"http://127.0.0.1:{port}{path}", headers=headers, **more)

        def answers() -> bool:
            try:
                return get("/healthz").status_code == 200
            except httpx.HTTPError:
                return False

        rig.wait("api", answers)
        yield get


@pytest.fixture(scope="module")
def sent(rig: Rig) -> int:
    """The row of an image that came by C-STORE and was forwarded."""
    entity = AE()
    image = dcmread(CT)
    entity.add_requested_context(CTImageStorage, image.file_meta.TransferSyntaxUID)
    association = entity.associate("127.0.0.1", rig.settings.dicom_port)
    assert association.is_established
    assert association.send_c_store(image).Status == 0
    association.release()
    row = rig.gw.index.by_sop(image.SOPInstanceUID)
    assert row is not None
    rig.wait("forwarded", lambda: [f.state for f in rig.gw.index.forwards(instance_id=row.id)] == ["SENT"])
    return row.id


def samples(text: str) -> dict[str, float]:
    return {
        s.name + "".join(f" {k}={v}" for k, v in sorted(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_one_exposition_of_all_processes(rig: Rig, web: Callable[..., httpx.Response], sent: int) -> None:
    assert web("/dicomweb/studies", role="clinician").status_code == 200
    steps = (
        "palimpsest_received_total outcome=new source=dimse",
        "palimpsest_step_seconds_count coder=learned modality=CT step=encode",
        "palimpsest_step_seconds_count coder=learned modality=CT step=verify",
        "palimpsest_step_seconds_count coder=learned modality=CT step=archive",
        "palimpsest_archived_total coder=learned modality=CT",
        "palimpsest_forward_seconds_count destination=out outcome=done",
        "palimpsest_instances state=ARCHIVED",
        "palimpsest_dependency_up dependency=queue",
        "palimpsest_processes role=listener",
        "palimpsest_processes role=sweep",
        "palimpsest_processes role=api",
    )

    def missing() -> set[str]:
        """What is not counted yet: a process counts a step when that is done, and a beat when it beats."""
        found = samples(web("/metrics").text)
        encoders = set() if found.get("palimpsest_processes role=encode") == 2 else {"two encoders"}
        either = ((each, each.replace("ARCHIVED", "RELEASED")) for each in steps)
        return encoders | {names[0] for names in either if not any(found.get(name, 0) >= 1 for name in names)}

    assert until(lambda: not missing()), missing()
    assert web("/metrics", role="").status_code == 401 and web("/metrics", role="clinician").status_code == 403
    shown = web("/metrics").text
    image = dcmread(CT)
    assert not any(str(word) in shown for word in (image.PatientID, image.PatientName, image.SOPInstanceUID))


def test_a_host_without_an_api_shows_its_own(rig: Rig, web: Callable[..., httpx.Response], sent: int) -> None:
    port = rig.settings.exporter_port
    assert web("/metrics", role="", port=port).status_code == 401
    found = samples(web("/metrics", role="service", port=port).text)
    assert found["palimpsest_received_total outcome=new source=dimse"] == 1
    assert "palimpsest_instances state=ARCHIVED" not in found and "palimpsest_disk_free_bytes place=spool" in found
    assert web("/admin", port=port).status_code == 404 and web("/healthz", role="", port=port).status_code == 200


def test_one_trace_from_receipt_to_forward(rig: Rig, collector: Collector, sent: int) -> None:
    trace, root = trace_id(rig.gw.index.get(sent))
    wanted = {"receive": "listener", "encode": "encode", "verify": "encode", "archive": "encode", "forward": "forward"}

    def mine() -> dict[str, str]:
        return {name: role for role, name, found, *_ in collector.spans if found == trace}

    assert until(lambda: mine() == wanted), collector.spans
    for _, name, found, span, parent, facts in collector.spans:
        assert found == trace and facts["palimpsest.instance"] == sent
        assert (span, parent) == (root, 0) if name == "receive" else parent == root
    image = dcmread(CT)
    secret = (image.PatientID, image.PatientName, image.SOPInstanceUID, image.StudyInstanceUID)
    assert not any(str(word).encode() in body for body in collector.raw for word in secret)


def test_flower_is_for_admins_and_only_reads(rig: Rig, web: Callable[..., httpx.Response], sent: int) -> None:
    rig.wait("flower", lambda: web("/admin/flower/").status_code == 200)
    assert web("/admin/flower").headers["location"] == "/admin/flower/"
    assert [web("/admin/flower/", role=role).status_code for role in ("", "auditor")] == [401, 403]
    page = web("/admin/flower/")
    policy = page.headers["content-security-policy"]
    assert "sha256-" in policy and "script-src 'self' 'unsafe-inline'" not in policy
    assert "set-cookie" not in page.headers
    for kind in ("js/flower.js", "css/flower.css"):
        path = next(part for part in page.text.split('"') if part.startswith(f"/admin/flower/static/{kind}"))
        assert web(path).status_code == 200
    assert web("/admin/flower/api/workers").status_code == 404 and web("/admin/flower/login").status_code == 404
    rig.wait("workers", lambda: "encode@" in web("/admin/flower/workers?json=1").text)
    address = f"http://127.0.0.1:{rig.settings.http_port}/admin/flower/api/worker/shutdown/x"
    token = {"Authorization": f"Bearer {mint_token(rig.gw, 'admin', 'tester')}"}
    assert httpx.post(address, headers=token, trust_env=False, timeout=120).status_code == 405


@pytest.mark.peers
def test_prometheus_scrapes_and_an_alert_fires(rig: Rig, web: Callable[..., httpx.Response], tmp_path: Path) -> None:
    program = shutil.which("prometheus")
    if program is None:
        assert os.environ.get("PALIMPSEST_REQUIRE_PEERS") != "1", "prometheus is required (apt install prometheus)"
        pytest.skip("needs prometheus (apt install prometheus)")
    (rig.settings.quarantine_dir / "7-coded.dcm").write_bytes(b"kept")
    (tmp_path / "token").write_text(mint_token(rig.gw, "service", "prometheus"))
    text = RULES.with_name("prometheus.yml").read_text("utf-8").replace("15s", "1s")
    text = text.replace("/etc/prometheus/palimpsest.token", str(tmp_path / "token"))
    (tmp_path / "prometheus.yml").write_text(text.replace("127.0.0.1:8080", f"127.0.0.1:{rig.settings.http_port}"))
    shutil.copy(RULES, tmp_path)
    address = f"127.0.0.1:{free_port()}"
    argv = [program, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen([*argv, f"--web.listen-address={address}"], stdout=log, stderr=log)
        try:
            assert until(lambda: firing(address) >= {"PalimpsestQuarantine"}), (tmp_path / "log").read_text()
            up = lambda: [each["value"][1] for each in ask(address, "query?query=up").get("result", ())]  # noqa: E731
            assert until(lambda: up() == ["1"]), (tmp_path / "log").read_text()
        finally:
            server.terminate()
            server.wait()


def ask(address: str, what: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(
            httpx.get(f"http://{address}/api/v1/{what}", trust_env=False, timeout=20).text
        )["data"]
    except (httpx.HTTPError, ValueError, KeyError):
        return {}
    return content


def firing(address: str) -> set[str]:
    alerts = ask(address, "alerts").get("alerts", ())
    return {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}
