"""The policy file: what matches, what is refused, and that every refusal says where and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydicom._uid_dict import UID_dictionary

from gateway.bootstrap import build, checked_policy
from gateway.errors import BadPolicy
from gateway.jobs import MemoryQueue
from gateway.keystate import Recipient
from gateway.policy import DEFAULT_ARCHIVE, DEFAULT_DELIVERY, NO_POLICY, ArchiveRule, DeliveryRule, Policy
from gateway.policy_file import check_recipients, load_policy, parse_policy, policy_schema
from gateway.settings import Destination, Settings, child_environment
from gateway.sop_classes import STORAGE_CLASSES

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
GOOD = """
version = 1

[[archive]]
name = "open-to-partners"   # first match wins
sop_class = ["CTImageStorage", "1.2.840.10008.5.1.4.1.1.4"]
modality = "CT"
shreddable = false
recipients = ["university"]

[[archive]]
name = "rest"
carrier = "beside"

[[delivery]]
name = "research"
destination = "research"
modality = ["CT", "MR"]
representation = "hidden"
unsuitable = ["self-contained", "refuse"]
deidentify = ["retain-modified-dates"]

[[delivery]]
name = "viewer"
destination = ["viewer"]
representation = "self-contained"
"""


def problems_of(text: str) -> list[str]:
    policy, problems = parse_policy(text)
    assert policy is None or not problems
    return [str(problem) for problem in problems]


def good() -> Policy:
    policy, problems = parse_policy(GOOD)
    assert policy is not None and not problems
    return policy


def test_without_a_policy_all_is_as_it_was_with_patient_keys() -> None:
    assert NO_POLICY.archive_rule(CT, "CT") is DEFAULT_ARCHIVE
    assert (DEFAULT_ARCHIVE.carrier, DEFAULT_ARCHIVE.seal_bitmap, DEFAULT_ARCHIVE.shreddable) == ("auto", False, True)
    assert (DEFAULT_ARCHIVE.recipients, DEFAULT_ARCHIVE.cms) == ((), ())
    assert (DEFAULT_ARCHIVE.profile, DEFAULT_ARCHIVE.adapt) == (None, None)


def test_how_to_code_is_said_by_the_rule_or_else_by_the_settings() -> None:
    rule = DEFAULT_ARCHIVE.coded("fast", "image", 2.0)
    assert (rule.profile, rule.adapt, rule.fit_seconds) == ("fast", "image", 2.0)
    own = ArchiveRule(name="own", profile="max", adapt="none", fit_seconds=9).coded("fast", "image", 2.0)
    assert (own.profile, own.adapt, own.fit_seconds) == ("max", "none", 9)
    assert NO_POLICY.delivery_rule("anywhere", CT, "CT") is DEFAULT_DELIVERY
    assert DEFAULT_DELIVERY.attempts == ("envelope",)


@pytest.mark.parametrize(
    ("sop_class", "modality", "name"),
    [(CT, "CT", "open-to-partners"), (MR, "CT", "open-to-partners"), (CT, "PT", "rest"), (CT, "", "rest"),
     ("1.2.3", "CT", "rest")],
)  # fmt: skip
def test_the_first_archive_rule_that_matches_decides(sop_class: str, modality: str, name: str) -> None:
    assert good().archive_rule(sop_class, modality).name == name


@pytest.mark.parametrize(
    ("destination", "modality", "name"),
    [("research", "MR", "research"), ("research", "US", "default"), ("viewer", "US", "viewer"),
     ("pacs", "CT", "default")],
)  # fmt: skip
def test_delivery_rules_match_by_destination_too(destination: str, modality: str, name: str) -> None:
    assert good().delivery_rule(destination, CT, modality).name == name


def test_what_is_tried_in_turn() -> None:
    research, viewer = good().delivery
    assert research.attempts == ("hidden", "self-contained")
    assert viewer.attempts == ("self-contained", "envelope")
    last = DeliveryRule(name="x", representation="self-contained", unsuitable=("refuse",))
    assert last.attempts == ("self-contained",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("version = 1\n[[archive]\n", "line 2: not TOML"),
        ("[[archive]]\nname='a'\n", "version is missing: add it"),
        ("version = 2\n", "line 1: version: input should be 1"),
        ("version = 1\n[archive]\nname='a'\n", "head each with [[...]] in double brackets"),
        ("version = 1\n[[archive]]\ncarrier='auto'\n", "line 2: [[archive]] rule 'number 1': name is missing"),
        ("version = 1\n\n[[archive]]\nname='a'\ncarier='auto'\n",
         "line 5: [[archive]] rule 'a': 'carier' is not known; did you mean 'carrier'?"),
        ("version = 1\n[[archive]]\nname='a'\ncarrier='pixels'\n", "line 4: [[archive]] rule 'a': carrier: input"),
        ("version = 1\n[[archive]]\nname='a'\nseal_bitmap='yes'\n", "[[archive]] rule 'a': seal_bitmap is true or"),
        ("version = 1\n[[archive]]\nname='a'\ncarrier='initial-bits'\nseal_bitmap=true\n", "needs a record inside"),
        ("version = 1\n[[archive]]\nname='a'\nsop_class='CTImageStorag'\n", "did you mean 'CTImageStorage'?"),
        ("version = 1\n[[archive]]\nname='a'\nsop_class=['*','CTImageStorage']\n", "'*' stands alone in sop_class"),
        ("version = 1\n[[archive]]\nname='a'\nmodality=[]\n", "never matches: leave it out"),
        ("version = 1\n[[archive]]\nname='a'\nmodality='ct'\n", "write it in capitals"),
        ("version = 1\n[[archive]]\nname='a'\nrecipients='b'\n", "line 2: [[archive]] rule 'a': a shreddable identity "
         "cannot have recipients"),
        ("version = 1\n[[archive]]\nname='a'\ncms='b'\n", "cannot have cms"),
        ("version = 1\n[[archive]]\nname='a'\nseal_bitmap=true\ncarrier='beside'\n", "seal_bitmap needs a record"),
        ("version = 1\n[[archive]]\nname='a'\n[[archive]]\nname='b'\n",
         "line 4: [[archive]] rule 'b': is never reached: rule 'a' above"),
        ("version = 1\n[[archive]]\nname='a'\nmodality='CT'\n[[archive]]\nname='a'\n", "line 6: [[archive]] rule 'a': "
         "this name is taken"),
        ("version = 1\n[[delivery]]\nname='default'\n", "this name is taken"),
        ("version = 1\n[[delivery]]\nname='a'\nrepresentation='hidden'\n", "say what happens to images that cannot"),
        ("version = 1\n[[delivery]]\nname='a'\nrepresentation='hidden'\nunsuitable='refuse'\nrestoration='inline'\n",
         "must be archived"),
        ("version = 1\n[[delivery]]\nname='a'\nrepresentation='hidden'\nunsuitable=['envelope','self-contained']\n",
         "can only come last"),
        ("version = 1\n[[delivery]]\nname='a'\nrepresentation='self-contained'\nunsuitable=[]\n", "each once"),
        ("version = 1\n[[delivery]]\nname='a'\nunsuitable='refuse'\n", "an envelope has no viewable image"),
        ("version = 1\n[[delivery]]\nname='a'\nrepresentation='self-contained'\n"
         "deidentify=['retain-full-dates','retain-modified-dates']\n", "either kept or shifted"),
        ("version = 1\n[[delivery]]\nname='a'\nrepresentation='self-contained'\ndeidentify='retain-names'\n",
         "line 5: [[delivery]] rule 'a': deidentify: input should be 'retain-safe-private'"),
        ("version = 1\n[[delivery]]\nname='a b'\n", "line 3: [[delivery]] rule 'a b': name: string should match"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_line_rule_and_what_to_do(text: str, expected: str) -> None:
    assert expected in "\n".join(problems_of(text))


def test_all_problems_are_found_at_once() -> None:
    found = problems_of("version = 1\n[[archive]]\nname='a'\ncarrier=1\n[[delivery]]\nname='b'\nport=1\n")
    assert len(found) == 2 and found[0].startswith("line 4") and found[1].startswith("line 7")


def test_rules_that_others_only_partly_cover_are_reached() -> None:
    policy, problems = parse_policy(
        "version = 1\n[[archive]]\nname='a'\nsop_class='CTImageStorage'\n[[archive]]\nname='b'\nmodality='CT'\n"
    )
    assert policy is not None and not problems


def test_recipients_must_be_in_the_key_ring_and_fit() -> None:
    policy = Policy(
        version=1, archive=(ArchiveRule(name="a", shreddable=False, recipients=("univ",), cms=("univ", "old")),)
    )
    check_recipients(policy, Path("p.toml"), [Recipient("univ", "rsa", b""), Recipient("old", "rsa", b"")])
    with pytest.raises(BadPolicy, match="no such recipient") as caught:
        check_recipients(policy, Path("p.toml"), [Recipient("univ", "xwing", b"")])
    assert "needs one of kind rsa" in str(caught.value) and "p.toml" in str(caught.value)


def test_starting_asks_the_key_ring_for_the_recipients(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("version = 1\n[[archive]]\nname='a'\nshreddable=false\nrecipients=['univ']\n")
    settings = Settings(home=tmp_path)
    with pytest.raises(BadPolicy, match="no such recipient"):  # and no ring yet
        checked_policy(settings)
    gateway = build(settings, queue=MemoryQueue())  # or nobody could add one
    gateway.close()
    with pytest.raises(BadPolicy, match="no such recipient"):
        checked_policy(settings)
    gateway.keys.add_recipient(Recipient("univ", "x25519", bytes(range(32))))
    assert checked_policy(settings) == gateway.policy


def test_the_default_place_may_be_empty_and_a_named_file_may_not(tmp_path: Path) -> None:
    assert load_policy(None, tmp_path) is NO_POLICY
    with pytest.raises(BadPolicy, match="cannot be read") as caught:
        load_policy(tmp_path / "mine.toml", tmp_path)
    assert caught.value.reason == "unreadable" and "mine.toml" in str(caught.value)
    (tmp_path / "policy.toml").write_text(GOOD)
    assert load_policy(None, tmp_path) == good()
    (tmp_path / "policy.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadPolicy):
        load_policy(None, tmp_path)


def test_a_link_that_leads_nowhere_is_no_missing_policy(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").symlink_to(tmp_path / "not-mounted" / "policy.toml")
    with pytest.raises(BadPolicy, match="cannot be read"):
        load_policy(None, tmp_path)


def test_a_rule_for_a_destination_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(GOOD)
    assert load_policy(None, tmp_path, ["research", "viewer", "pacs"]) == good()
    with pytest.raises(BadPolicy, match="line 25: .*no destination 'viewer' is configured; there are: research"):
        load_policy(None, tmp_path, ["research"])


def test_a_gateway_with_a_broken_policy_does_not_start_and_makes_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    file = tmp_path / "policy.toml"
    file.write_text("version = 1\n[[archive]]\nname = 'a'\nmodality = 'ct'\n")
    with pytest.raises(BadPolicy) as caught:
        build(Settings(home=home, policy_file=file), queue=MemoryQueue())
    assert caught.value.reason == "modality"
    assert str(file) in str(caught.value) and "line 4" in str(caught.value) and not home.exists()


def test_a_gateway_holds_the_policy_it_started_with(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "policy.toml").write_text(GOOD.replace('recipients = ["university"]', ""))
    gateway = build(
        Settings(home=home, destinations=(Destination(name="research"), Destination(name="viewer"))),
        queue=MemoryQueue(),
    )
    assert gateway.policy.delivery_rule("viewer", CT, "CT").representation == "self-contained"
    gateway.close()


def test_children_read_the_same_policy_file(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    assert child_environment(Settings(policy_file=file))["PALIMPSEST_POLICY_FILE"] == str(file)


def test_older_destination_files_still_load() -> None:
    assert Destination.model_validate({"name": "a", "representation": "envelope"}) == Destination(name="a")
    with pytest.raises(ValueError, match="representation"):
        Destination.model_validate({"name": "a", "representation": "hidden"})


def test_the_schema_describes_the_file() -> None:
    schema = json.loads(policy_schema())
    assert schema["$schema"].endswith("2020-12/schema") and schema["required"] == ["version"]
    archive = schema["$defs"]["ArchiveRule"]
    assert archive["additionalProperties"] is False
    assert archive["properties"]["carrier"]["enum"] == ["auto", "segmented", "beside", "initial-bits"]
    assert all("description" in field for field in archive["properties"].values())


def test_keywords_are_those_of_the_standard() -> None:
    known = {row[4]: uid for uid, row in UID_dictionary.items() if row[1] == "SOP Class" and not row[3]}
    assert {keyword: known.get(keyword) for keyword in STORAGE_CLASSES} == STORAGE_CLASSES
    assert STORAGE_CLASSES["CTImageStorage"] == CT and len(STORAGE_CLASSES) > 150


# --- routes, and one identity for each destination ---

FACTS = {"calling_ae": "CT1", "sop_class": CT, "modality": "CT", "body_part": "CHEST", "station": "CT-NORTH",
         "study_description": "Thorax, low dose (TRIAL)"}  # fmt: skip


@pytest.mark.parametrize(
    ("condition", "matches"),
    [
        ('calling_ae = "CT*"', True), ('calling_ae = "ct1"', False), ('calling_ae = ["MR1", "CT?"]', True),
        ('sop_class = "CTImageStorage"', True), ('modality = "MR"', False), ('body_part = ["HEAD", "CHEST"]', True),
        ('station = "*NORTH"', True), ('study_description = "thorax trial"', True),
        ('study_description = "thor"', False), ('study_description = ["knee", "LOW dose"]', True),
        ('study_description = "thorax knee"', False),
    ],
)  # fmt: skip
def test_a_route_matches_by_who_sent_it_and_what_it_shows(condition: str, matches: bool) -> None:
    policy, problems = parse_policy(f"version=1\n[[route]]\nname='r'\ndestinations='pacs'\n{condition}\n")
    assert policy is not None, problems
    rule = policy.route_rule(FACTS)
    assert rule.name == ("r" if matches else "default")
    assert rule.chosen(["a", "pacs"]) == (("pacs",) if matches else ("a", "pacs"))
    if not matches:
        assert policy.route[0].mismatch(**FACTS) == condition.split(" ")[0]


def test_a_route_to_nowhere_keeps_an_object_here() -> None:
    policy, _ = parse_policy("version=1\n[[route]]\nname='r'\ndestinations=[]\n")
    assert policy is not None and policy.route_rule(FACTS).chosen(["a", "b"]) == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("destinations='pacs'\nstudy_description='...'", "matches nothing"),
        ("destinations='pacs'\ncalling_ae=''", "matches nothing"),
        ("destinations=['*','pacs']", "stands alone"),
        ("", "destinations is missing"),
        ("destinations='pacs'\npatient_id='1'", "not known"),
        ("destinations='pacs'\nmodality='ct'", "capitals"),
    ],
)
def test_a_wrong_route_is_named(text: str, said: str) -> None:
    [problem] = problems_of(f"version=1\n[[route]]\nname='r'\n{text}\n")
    assert "[[route]] rule 'r'" in problem and said in problem


def delivery(*rules: str) -> str:
    return "version=1\n" + "".join(f"[[delivery]]\nname='r{n}'\n{rule}\n" for n, rule in enumerate(rules))


@pytest.mark.parametrize(
    "rules",
    [
        ["destination='pacs'\nrepresentation='viewable'\nmodality='CT'"],  # the rest: envelopes, by default
        ["destination='pacs'\nrepresentation='deidentified'\nmodality='CT'", "representation='viewable'"],
        ["representation='viewable'\nmodality='CT'"],
        ["destination='pacs'\nrepresentation='viewable'\nunsuitable='envelope'"],
    ],
)  # fmt: skip
def test_one_destination_never_gets_identified_and_pseudonymous_objects(rules: list[str]) -> None:
    problems = problems_of(delivery(*rules))
    assert len(problems) == 1 and "pseudonym" in problems[0], problems


def test_one_kind_for_each_destination_is_in_order() -> None:
    text = delivery(
        "destination='pacs'\nrepresentation='viewable'\nmodality='CT'\nsyntax='jpeg-ls'",
        "destination='pacs'\nrepresentation='viewable'",
        "destination='lake'\nrepresentation='deidentified'",
    )
    policy, problems = parse_policy(text)
    assert policy is not None, problems
    assert policy.delivery_rule("pacs", CT, "CT").attempts == ("viewable",)
    assert policy.delivery_rule("lake", CT, "CT").attempts == ("deidentified", "envelope")
    assert [rule.name for rule in policy.delivery_rules("pacs")] == ["r0", "r1"]
    assert [rule.name for rule in policy.delivery_rules("other")] == ["default"]


def test_options_that_do_nothing_are_refused() -> None:
    for rule, word in (
        ("representation='viewable'\ndeidentify='retain-uids'", "deidentify"),
        ("representation='deidentified'\nrestoration='inline'", "restoration"),
        ("representation='self-contained'\nsyntax='jpeg-ls'", "syntax"),
        ("representation='envelope'\nsyntax='jpeg-ls'", "syntax"),
    ):
        [problem] = problems_of(delivery(rule))
        assert word in problem


def test_routes_know_the_destinations(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("version=1\n[[route]]\nname='r'\ndestinations='pcs'\n")
    with pytest.raises(BadPolicy, match=r"rule 'r': no destination 'pcs' is configured; there are: pacs"):
        load_policy(None, tmp_path, ["pacs"])
