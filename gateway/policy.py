"""The policy: what an archive object is made like, which destinations get it, and in which form.

Three ordered lists of rules; the first rule that matches decides, and behind the last one stand the defaults. A rule
matches by SOP class and modality of the object as received, a delivery rule by its destination's name too, a routing
rule by who sent it and what it shows. The file is read by `gateway.policy_file`; a policy
that exists was checked whole.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gateway.sop_classes import STORAGE_CLASSES

ANY: Final = "*"
_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)+")
_MODALITY: Final = re.compile(r"[A-Z0-9_ ]{1,16}")
_NAME: Final = r"^[A-Za-z0-9_.-]{1,64}$"

Representation = Literal["envelope", "viewable", "deidentified", "self-contained", "hidden"]
Fallback = Literal["self-contained", "deidentified", "envelope", "refuse"]
Syntax = Literal["jpeg-xl", "jpeg-ls", "jpeg-2000", "htj2k", "explicit-le", "implicit-le"]
IDENTIFIED: Final[frozenset[str]] = frozenset({"viewable"})
"""Forms that show who the patient is; all others are pseudonymous, and no destination gets both."""
CodecProfile = Literal["fast", "default", "max"]
Adaptation = Literal["none", "image", "series"]
Grouping = Literal["off", "series"]
Option = Literal[
    "retain-safe-private", "retain-uids", "retain-device-identity", "retain-institution-identity",
    "retain-patient-characteristics", "retain-full-dates", "retain-modified-dates", "clean-descriptors",
    "clean-structured-content", "clean-graphics", "clean-pixel-data", "clean-recognizable-visual-features",
]  # fmt: skip
"""The options of PS3.15 table E.1-1 by their names there."""


def _listed(value: Any) -> Any:
    """One word may stand for a list of one."""
    return (value,) if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_listed, json_schema_input_type=str | list[str])]


def refusal(reason: str, message: str) -> PydanticCustomError:
    """A check's refusal: a machine word, and a sentence that ends in what to do."""
    return PydanticCustomError("refused", "{message}", {"reason": reason, "message": message})


def _sop_class(value: str) -> str:
    """A UID as it is, a keyword's UID, or '*'."""
    if value == ANY or (_UID.fullmatch(value) and len(value) <= 64):
        return value
    if value not in STORAGE_CLASSES:
        raise refusal("sop-class", f"'{value}' is no storage SOP class{did_you_mean(value, STORAGE_CLASSES)}")
    return STORAGE_CLASSES[value]


def _alone_if_any(field: str, values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise refusal(f"empty-{field.replace('_', '-')}", f"{field} = [] never matches: leave it out for any")
    if ANY in values and len(values) > 1:
        raise refusal(f"any-{field.replace('_', '-')}", f"'*' stands alone in {field}: it means any")
    return values


def did_you_mean(word: str, known: Collection[str]) -> str:
    """'; did you mean ...?' or, with nothing near, how to look it up."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else "; `palimpsest policy schema` names what is known"


class Rule(BaseModel):
    """What both kinds of rules share: a name for reports, and which objects they are for."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    conditions: ClassVar[tuple[str, ...]] = ("sop_class", "modality")

    name: str = Field(pattern=_NAME, description="unique in its list; stands in errors, the audit trail and `explain`")
    sop_class: Words = Field(
        default=(ANY,), description="storage SOP classes by UID or keyword (CTImageStorage), or '*' for any"
    )
    modality: Words = Field(default=(ANY,), description="values of Modality (0008,0060), or '*' for any")

    @field_validator("sop_class", mode="after")
    @classmethod
    def _resolve(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return _alone_if_any("sop_class", tuple(_sop_class(value) for value in values))

    @field_validator("modality", mode="after")
    @classmethod
    def _check_modality(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if value != ANY and _MODALITY.fullmatch(value) is None:
                raise refusal("modality", f"'{value}' is no modality: write it in capitals, such as 'CT', or '*'")
        return _alone_if_any("modality", values)

    def mismatch(self, **found: str) -> str:
        """'' if the rule is for an object with these values, else the first condition that is not met."""
        for field in self.conditions:
            allowed = getattr(self, field)
            if ANY not in allowed and found[field] not in allowed:
                return field
        return ""

    def covers(self, other: Rule) -> bool:
        """True if nothing that `other` matches would get past this rule."""
        pairs = ((getattr(self, field), getattr(other, field)) for field in self.conditions)
        return all(ANY in mine or (ANY not in theirs and set(theirs) <= set(mine)) for mine, theirs in pairs)


class ArchiveRule(Rule):
    """How the archive object is made. The defaults: the cheapest carrier, identity under the patient's own key."""

    carrier: Literal["auto", "segmented", "beside", "initial-bits"] = Field(
        default="auto",
        description="where the sealed record rides: in the local planes of the image (segmented), beside the image, "
        "as the first bits of a stack of global parts (initial-bits, where a stack is shorter; else as auto), or "
        "whichever measures smallest (auto)",
    )
    seal_bitmap: bool = Field(
        default=False, strict=True,
        description="without the ring's pixel key (or a recovery recipient's) only the altered image can be seen",
    )  # fmt: skip
    shreddable: bool = Field(
        default=True, strict=True,
        description="`palimpsest keys shred` can destroy the identity for good: nobody but the patient's key opens it",
    )  # fmt: skip
    recipients: Words = Field(
        default=(), description="names of further recipients (`palimpsest keys recipients list`) that can open it"
    )
    cms: Words = Field(
        default=(),
        description="names of RSA recipients that get the identity as CMS EnvelopedData in (0400,0500), PS3.15 E.1",
    )
    profile: CodecProfile | None = Field(
        default=None,
        description="how hard the codec tries: fast, default or max (smallest). Left out: the setting codec_profile",
    )
    adapt: Adaptation | None = Field(
        default=None,
        description="what the codec's weights are fitted to: none, each image, or each series (one adapter for all of "
        "it); costs the encoder time. Left out: the setting codec_adapt",
    )
    fit_seconds: float | None = Field(
        default=None, gt=0, description="that one fit may take. Left out: the setting codec_fit_seconds"
    )

    group: Grouping = Field(
        default="off",
        description="series: slices of one series that wait together become one archive object, each coded with the "
        "one before; smaller, but giving back one slice decodes up to 15 others, and damage reaches further",
    )

    def coded(self, profile: CodecProfile, adapt: Adaptation, fit_seconds: float) -> ArchiveRule:
        """The same rule, saying how to code: its own words, else those given (the settings')."""
        return self.model_copy(
            update={
                "profile": self.profile or profile,
                "adapt": self.adapt or adapt,
                "fit_seconds": self.fit_seconds or fit_seconds,
            }
        )

    @model_validator(mode="after")
    def _combinations(self) -> ArchiveRule:
        further = [word for word in ("recipients", "cms") if getattr(self, word)]
        if self.shreddable and further:
            raise refusal(
                "shreddable-with-recipients",
                f"a shreddable identity cannot have {' and '.join(further)}: a copy that others open survives the "
                "shredding. Set shreddable = false, or take them out (break-glass works by the key backup)",
            )
        if self.group == "series" and self.cms:
            raise refusal(
                "group-with-cms",
                "a group's object has no room for the identity copies of cms: use group = 'off', or drop cms",
            )
        if self.seal_bitmap and self.carrier in ("beside", "initial-bits"):
            raise refusal(
                f"seal-bitmap-{self.carrier}",
                f"seal_bitmap needs a record inside the pixels, and carrier = '{self.carrier}' puts none there: "
                "use carrier = 'segmented' or 'auto', or drop seal_bitmap",
            )
        return self


class DeliveryRule(Rule):
    """In which form a destination gets an object."""

    conditions: ClassVar[tuple[str, ...]] = ("destination", "sop_class", "modality")

    destination: Words = Field(default=(ANY,), description="names of destinations, or '*' for any")
    representation: Representation = Field(
        default="envelope",
        description="the archive object itself (envelope); the original, identified (viewable), or without identity "
        "(deidentified), in the best lossless syntax that the destination takes; or a viewable de-identified image "
        "that carries its identity in the pixels: self-contained restores itself with the key, hidden does not show "
        "that it carries anything",
    )
    syntax: Annotated[tuple[Syntax, ...], BeforeValidator(_listed, json_schema_input_type=Syntax | list[Syntax])] = (
        Field(
            default=(),
            description="of viewable and deidentified: the lossless syntaxes to choose from, best first. Left out: "
            "what the probe has proven or the destination accepts",
        )
    )
    unsuitable: Annotated[
        tuple[Fallback, ...] | None, BeforeValidator(_listed, json_schema_input_type=Fallback | list[Fallback])
    ] = Field(
        default=None,
        description="what to send when that form cannot be made, in order; 'refuse': a dead letter. Default envelope "
        "for self-contained and deidentified, refuse for viewable; must be said for hidden",
    )
    restoration: Literal["archive", "inline"] = Field(
        default="archive",
        description="where the rest of what restores the original is kept: sealed in the archive, or sealed in the "
        "object's own header (self-contained only)",
    )
    deidentify: Annotated[
        tuple[Option, ...], BeforeValidator(_listed, json_schema_input_type=Option | list[Option])
    ] = Field(default=(), description="options of the Basic Profile (PS3.15 table E.1-1) for the image's header")

    @property
    def identified(self) -> bool:
        """True if what is sent shows who the patient is."""
        return self.representation in IDENTIFIED

    @property
    def attempts(self) -> tuple[Representation, ...]:
        """What to try, in order; if none of it can be made, the object is not sent."""
        further: Iterable[str] = self.unsuitable if self.unsuitable is not None else ()
        if self.unsuitable is None and self.representation in ("self-contained", "deidentified"):
            further = ("envelope",)
        tries: list[Representation] = [self.representation]
        tries += [word for word in further if word != "refuse"]  # type: ignore[misc]  # narrowed by the line's if
        return tuple(tries)

    @model_validator(mode="after")
    def _combinations(self) -> DeliveryRule:
        _alone_if_any("destination", self.destination)
        if self.representation == "envelope":
            self._no_use_for(
                "envelope-options", "an envelope has no viewable image; drop it, or choose a representation",
                "unsuitable", "restoration", "deidentify", "syntax",
            )  # fmt: skip
            return self
        if self.identified:
            self._no_use_for("viewable-options", "the original goes out as it is", "restoration", "deidentify")
        elif self.representation == "deidentified":
            self._no_use_for("nothing-sealed", "a de-identified copy carries nothing to restore", "restoration")
        else:
            self._no_use_for("stego-syntax", "a carrier image is always Explicit VR Little Endian", "syntax")
        if self.representation == "hidden" and self.restoration == "inline":
            raise refusal(
                "hidden-without-archive",
                "hidden images show nothing of ours in the header, so what restores them must be archived: "
                "use restoration = 'archive'",
            )
        if {"retain-full-dates", "retain-modified-dates"} <= set(self.deidentify):
            raise refusal("dates-twice", "dates are either kept or shifted: name one of the two date options")
        self._check_order()
        return self

    def _no_use_for(self, reason: str, why: str, *fields: str) -> None:
        if named := [word for word in fields if word in self.model_fields_set]:
            raise refusal(reason, f"{' and '.join(named)}: {why}")

    def _check_order(self) -> None:
        if self.representation == "hidden" and self.unsuitable is None:
            raise refusal(
                "unsuitable-unsaid",
                "say what happens to images that cannot hide anything: unsuitable = 'refuse', or 'self-contained' or "
                "'envelope', which anybody can see for what they are",
            )
        words = self.unsuitable or ()
        if self.identified and set(words) - {"refuse"}:
            raise refusal(
                "mixed-identity",
                "what cannot be sent as the identified original must not follow under a pseudonym: a destination gets "
                "the one or the other. Drop unsuitable, or say 'refuse'",
            )
        wrong = len(set(words)) != len(words) or self.representation in words
        after_last = any(word in ("envelope", "refuse") for word in words[:-1])
        if wrong or after_last or (self.unsuitable is not None and not words):
            raise refusal(
                "unsuitable-order",
                "unsuitable is a list of other representations, each once; 'envelope' (which always works) or 'refuse' "
                "can only come last",
            )


class RouteRule(Rule):
    """Which destinations an object goes to. Nothing of the patient is offered as a condition."""

    conditions: ClassVar[tuple[str, ...]] = (
        "calling_ae", "sop_class", "modality", "body_part", "station", "study_description",
    )  # fmt: skip

    calling_ae: Words = Field(
        default=(ANY,), description="AE titles (or token subjects) that sent it, with * and ? as wildcards: 'CT*'"
    )
    body_part: Words = Field(default=(ANY,), description="values of Body Part Examined (0018,0015), or '*' for any")
    station: Words = Field(default=(ANY,), description="Station Names (0008,1010), with * and ? as wildcards")
    study_description: Words = Field(
        default=(ANY,),
        description="words of Study Description (0008,1030), in either case; of 'chest routine' both must stand there",
    )
    destinations: Words = Field(description="names of destinations, '*' for all of them, [] for none: archived only")

    @field_validator("calling_ae", "body_part", "station", "study_description", mode="after")
    @classmethod
    def _check_words(cls, values: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        field = str(info.field_name)
        for value in values:
            wordless = field == "study_description" and value != ANY and not words_of(value)
            if not value.strip() or len(value) > 64 or wordless:
                raise refusal("condition", f"'{value}' in {field} matches nothing: write a value, or '*' for any")
        return _alone_if_any(field, values)

    @field_validator("destinations", mode="after")
    @classmethod
    def _check_destinations(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return _alone_if_any("destinations", values) if values else values

    def mismatch(self, **found: str) -> str:
        """As `Rule.mismatch`, with wildcards and words."""
        plain = {name: found[name] for name in ("sop_class", "modality", "body_part")}
        for field in self.conditions:
            if ANY in getattr(self, field):
                continue
            if field in plain:
                met = plain[field] in getattr(self, field)
            elif field == "study_description":
                words = words_of(found[field])
                met = any(words_of(each) <= words for each in self.study_description)
            else:
                met = any(fnmatchcase(found[field], each) for each in getattr(self, field))
            if not met:
                return field
        return ""

    def chosen(self, configured: Iterable[str]) -> tuple[str, ...]:
        """The destinations among those configured, in their order."""
        return tuple(name for name in configured if ANY in self.destinations or name in self.destinations)


def words_of(text: str) -> frozenset[str]:
    """The words of a text, without case and punctuation."""
    return frozenset(re.findall(r"\w+", text.casefold()))


DEFAULT_ROUTE: Final = RouteRule(name="default", destinations=(ANY,))
DEFAULT_ARCHIVE: Final = ArchiveRule(name="default")
DEFAULT_DELIVERY: Final = DeliveryRule(name="default")


class Policy(BaseModel):
    """All three lists, as in the file. An empty policy is the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Palimpsest policy")

    version: Literal[1] = Field(description="of this format")
    archive: tuple[ArchiveRule, ...] = Field(default=(), description="first match wins; else: " + "the defaults")
    route: tuple[RouteRule, ...] = Field(default=(), description="first match wins; else: every destination")
    delivery: tuple[DeliveryRule, ...] = Field(default=(), description="first match wins; else: envelope")

    @property
    def names_recipients(self) -> bool:
        """True if any rule needs a recipient of the key ring."""
        return any(rule.recipients or rule.cms for rule in self.archive)

    def archive_rule(self, sop_class: str, modality: str) -> ArchiveRule:
        """The rule for an object: SOP class UID, and Modality ('' if it has none)."""
        return next(
            (rule for rule in self.archive if not rule.mismatch(sop_class=sop_class, modality=modality)),
            DEFAULT_ARCHIVE,
        )

    def route_rule(self, found: Mapping[str, str]) -> RouteRule:
        """The rule that says where an object goes; found: a value for each of its conditions, '' if unknown."""
        return next((rule for rule in self.route if not rule.mismatch(**found)), DEFAULT_ROUTE)

    def delivery_rules(self, destination: str) -> tuple[DeliveryRule, ...]:
        """Every rule, the default included, under which some object could go to that destination."""
        found = []
        for rule in (*self.delivery, DEFAULT_DELIVERY):
            if ANY not in rule.destination and destination not in rule.destination:
                continue
            found.append(rule)
            if ANY in rule.sop_class and ANY in rule.modality:
                break
        return tuple(found)

    def delivery_rule(self, destination: str, sop_class: str, modality: str) -> DeliveryRule:
        """The rule for an object on its way to a destination."""
        found = {"destination": destination, "sop_class": sop_class, "modality": modality}
        return next((rule for rule in self.delivery if not rule.mismatch(**found)), DEFAULT_DELIVERY)


NO_POLICY: Final = Policy(version=1)
"""What holds where there is no policy file."""
