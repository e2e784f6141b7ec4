"""`palimpsest policy`: what it says of good and bad files, and that the example in docs/ is a good one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.policy import ArchiveRule, DeliveryRule, Policy, RouteRule
from gateway.policy_file import parse_policy
from palimpsest.cli import app
from tests.object_makers import image, noisy

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "policy-example.toml"
MR = "1.2.840.10008.5.1.4.1.1.4"
runner = CliRunner()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("PALIMPSEST_HOME", str(folder))
    return folder


def call(*arguments: str, code: int = 0) -> str:
    result = runner.invoke(app, ["policy", *arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def example() -> Policy:
    policy, problems = parse_policy(EXAMPLE.read_text("utf-8"))
    assert policy is not None, problems
    return policy


def test_the_example_is_in_order_and_does_what_its_comments_say() -> None:
    policy = example()
    assert policy.archive_rule(MR, "MR").seal_bitmap
    assert policy.archive_rule("1.2.840.10008.5.1.4.1.1.1.2", "MG").carrier == "beside"
    assert policy.delivery_rule("research", MR, "MR").attempts == ("hidden",)
    assert policy.delivery_rule("research", MR, "US").attempts == ("self-contained", "envelope")
    assert policy.delivery_rule("viewer", MR, "US").restoration == "inline"
    assert policy.delivery_rule("pacs", MR, "MR").representation == "viewable"
    assert policy.delivery_rule("elsewhere", MR, "MR").representation == "envelope"
    facts = {
        "sop_class": MR,
        "modality": "MR",
        "body_part": "",
        "station": "",
        "study_description": "",
        "calling_ae": "MR1",
    }
    assert policy.route_rule(facts).destinations == ("viewer", "pacs")
    assert policy.route_rule(facts | {"study_description": "Lung, TRIAL 7"}).name == "trial"
    assert policy.route_rule(facts | {"calling_ae": "QA-7"}).destinations == ()


def test_the_part_of_the_example_that_is_commented_out_is_in_order_too() -> None:
    text = re.sub(r"(?m)^# (?=\[\[archive\]\]$|\w+ = )", "", EXAMPLE.read_text("utf-8"))
    policy, problems = parse_policy(text)
    assert policy is not None, problems
    assert policy.archive_rule("1.2.3", "RTDOSE").recipients == ("university",)


def test_the_example_explains_every_field_and_every_word() -> None:
    text = EXAMPLE.read_text("utf-8")
    for model in (ArchiveRule, RouteRule, DeliveryRule):
        for name, field in model.model_json_schema(mode="serialization")["properties"].items():
            assert re.search(rf"(?m)^#   {name} ", text), name
            for word in field.get("enum", field.get("items", {}).get("enum", ())):
                assert word in text, word


def test_operations_shows_the_example_whole() -> None:
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    assert f"```toml\n{EXAMPLE.read_text('utf-8')}```" in text


def test_check_says_what_is_in_force(home: Path) -> None:
    assert "there is no policy file" in call("check") and str(home / "policy.toml") in call("check")
    (home / "policy.toml").write_text(EXAMPLE.read_text("utf-8"))
    said = call("check")
    for words in (
        "magnetic-resonance",
        "sop_class: MRImageStorage",
        "seal_bitmap = true",
        "2 archive rules, 3 route rules, 5 delivery",
    ):
        assert words in said
    assert f"{home / 'policy.toml'} is in order" in said
    assert call("check", str(EXAMPLE)) == said.replace(str(home / "policy.toml"), str(EXAMPLE))


def test_check_of_a_bad_file_names_every_problem_and_fails(home: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("version = 1\n[[archive]]\nname='a'\ncarrier='pixels'\n[[archive]]\nname='b'\nrecipient='x'\n")
    said = call("check", str(bad), code=1)
    assert "line 4: [[archive]] rule 'a'" in said and "line 7: [[archive]] rule 'b'" in said
    assert "did you mean 'recipients'" in said and str(bad) in said
    assert "cannot be read" in call("check", str(tmp_path / "none.toml"), code=1)


def test_check_knows_the_destinations(home: Path) -> None:
    (home / "destinations.json").write_text(json.dumps([{"name": "research"}]))
    assert "no destination 'viewer' is configured; there are: research" in call("check", str(EXAMPLE), code=1)


def test_nothing_starts_under_a_policy_that_is_not_in_order(home: Path) -> None:
    (home / "policy.toml").write_text("version = 1\n[[delivery]]\nname='x'\nrepresentation='hidden'\n")
    for command in (["run", "--once"], ["work"], ["migrate"], ["status"]):
        result = runner.invoke(app, command)
        assert result.exit_code == 1, (command, result.output)
        said = " ".join((result.output + str(result.exception)).split())
        assert "line 2: [[delivery]] rule 'x': say what happens to images that cannot hide" in said, command
    assert [path.name for path in home.iterdir()] == ["policy.toml"]


def test_the_schema_is_printed_as_json() -> None:
    assert json.loads(call("schema"))["title"] == "Palimpsest policy"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.dcm"
    path.write_bytes(image([noisy(320, 320)], stored=12, Modality="MR", SOPClassUID=MR))
    return path


def test_explain_makes_everything_and_keeps_nothing(home: Path, picture: Path) -> None:
    where = [word for name in ("research", "viewer", "pacs") for word in ("--destination", name)]
    said = json.loads(call("explain", str(picture), "--policy", str(EXAMPLE), "--json", *where))
    archived, (research, viewer, pacs) = said["archived"], said["delivered"]
    assert (archived["rule"], archived["carrier"]) == ("magnetic-resonance", "sealed-bitmap")
    assert archived["passed"] == [{"rule": "mammography", "condition": "sop_class"}]
    assert 0 < archived["payload_bytes"] < archived["size"] < said["size"]
    assert (research["rule"], research["sent"], viewer["rule"], viewer["sent"]) == (
        "study-group", "hidden", "teleradiology", "self-contained",
    )  # fmt: skip
    assert research["tried"][0]["restored"] and research["tried"][0]["max_change"] == 1
    assert [passed["rule"] for passed in viewer["passed"]] == ["study-group", "research-rest"]
    assert (pacs["rule"], pacs["sent"], pacs["routed"]) == ("own-pacs", "viewable", True)
    assert (pacs["tried"][0]["syntax"], research["routed"]) == ("1.2.840.10008.1.2.4.90", False)
    assert said["routed"]["rule"] == "clinical" and said["routed"]["destinations"] == ["viewer", "pacs"]
    assert list(home.iterdir()) == []
    assert "Quastenflosser" not in json.dumps(said)


def test_explain_says_it_in_words_with_the_reasons(home: Path, picture: Path) -> None:
    picture.write_bytes(image([noisy(320, 320)], stored=12, Modality="CT", BurnedInAnnotation="YES"))
    said = call("explain", str(picture), "--policy", str(EXAMPLE), "--destination", "research")
    for words in ("archive: rule 'default' (not mammography: other sop_class", "coded by", "rule 'study-group'",
                  "hidden: cannot be made (burned-in)", "would not be sent: dead letter"):  # fmt: skip
        assert words in said
    said = call("explain", str(picture), "--policy", str(EXAMPLE), "--destination", "viewer")
    assert "self-contained: cannot be made (burned-in) envelope:" in said and "would be sent: envelope" in said
    assert "no destination is configured" in call("explain", str(picture))
    picture.write_bytes(b"no image")
    assert "PS3.10" in call("explain", str(picture), code=1)
