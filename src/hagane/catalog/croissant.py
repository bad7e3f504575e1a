"""Croissant 1.1: what an exported data set is, as JSON-LD that search engines, loaders and lawyers' tools read.

Specification: http://mlcommons.org/croissant/1.1 (2026-01-29), with its responsible-AI vocabulary
http://mlcommons.org/croissant/RAI/1.0. Terms of use are an ODRL offer under `usageInfo`, as the specification
recommends (https://www.w3.org/TR/odrl-model/); units are schema.org's `unitText` in UCUM spelling.

The data has no page on the web, so its `url` is its content (RFC 6920: ni:///sha-256;...).
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Any

from hagane.catalog.catalog import Catalog
from hagane.catalog.contents import FileFacts, episodes_of
from hagane.catalog.croissant_records import PARQUET, record_sets
from hagane.terms import Contract, Embodiment

VERSION = "http://mlcommons.org/croissant/1.1"
RAI_VERSION = "http://mlcommons.org/croissant/RAI/1.0"
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "odrl": "http://www.w3.org/ns/odrl/2/",
    "prov": "http://www.w3.org/ns/prov#",
    **{
        term: f"cr:{term}"
        for term in (
            "annotation", "arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "excludes", "extract",
            "field", "fileProperty", "fileObject", "fileSet", "format", "includes", "isArray", "isLiveDataset",
            "jsonPath", "key", "md5", "parentField", "recordSet", "references", "regex", "readLines", "sdVersion",
            "separator", "source", "subField", "transform", "unArchive", "value",
        )
    },
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
}  # fmt: skip
"""The specification's appendix 1, with ODRL and PROV; schema.org by https, as the reference implementation reads it."""
_TYPES: dict[str, str | list[str]] = {
    ".parquet": list(PARQUET),
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".toml": "application/toml",
    ".mp4": "video/mp4",
    ".sig": "application/json",
}


def croissant(
    catalog: Catalog, name: str, to: str, layout: str, files: Sequence[FileFacts], folder: Path, today: date
) -> dict[str, Any]:
    """The description of an exported data set.

    Args:
        catalog: where it comes from.
        name: data set.
        to: lerobot or parquet.
        layout: of parquet: wide or long.
        files: every file of the export so far.
        folder: where they are, to read the tables' columns.
        today: when it is published.
    """
    record, machine = catalog.record(name), catalog.embodiment(name)
    signed = catalog.contract(name)
    owner = {"@type": "sc:Organization", "name": record.owner, "url": f"urn:hagane:owner:{record.owner}"}
    url = _named_by_content(record.digest)
    sets, resources = record_sets(folder, machine, to, layout)
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": [VERSION, RAI_VERSION],
        "name": name,
        "description": _description(record.episodes, record.steps, record.seconds, machine, to, layout),
        "url": url,
        "identifier": f"sha256:{record.digest}",
        "citeAs": f"{record.owner}, {name}, sha256:{record.digest}",
        "version": "1.0.0",
        "datePublished": today.isoformat(),
        "inLanguage": "en",
        "isLiveDataset": False,
        "keywords": [machine.domain, machine.name, "hagane", to],
        "creator": owner,
        "publisher": owner,
        "copyrightHolder": owner,
        **_origin(catalog, name, record.owner),
        **_terms(signed.contract, signed.digest, url),
        **_responsible(catalog, name, machine, signed.contract),
        "distribution": [*map(_file, files), *resources],
        "recordSet": sets,
    }


def _description(episodes: int, steps: int, seconds: float, machine: Embodiment, to: str, layout: str) -> str:
    how = (
        f"as a LeRobot v3.0 set on the control grid ({machine.rate_hz:g} Hz)"
        if to == "lerobot"
        else f"as {layout} Parquet files, one an episode, at native rates with stamps in nanoseconds"
    )
    size = f"{episodes} episodes, {steps} control steps, {seconds / 3600:.3g} hours"
    return f"Logs of the machine {machine.name} ({machine.domain}) of {machine.owner}: {size}, {how}."


def _origin(catalog: Catalog, name: str, owner: str) -> dict[str, Any]:
    """Who it belongs to, and where it was brought in as far as the record says."""
    site = catalog.record(name).site
    place: dict[str, Any] = {"@type": "sc:Place", "name": site}
    if site == catalog.site.name:
        place["address"] = {"@type": "sc:PostalAddress", "addressCountry": catalog.site.country}
    label = f"intake at {site}" if site else "intake"
    return {
        **({"locationCreated": place} if site else {}),
        "prov:wasAttributedTo": {"@type": "prov:Agent", "prov:label": owner},
        "prov:wasGeneratedBy": {"@type": "prov:Activity", "prov:label": label},
    }


def _terms(contract: Contract, digest: str, target: str) -> dict[str, Any]:
    """The licence is the owner's contract; its terms once more, for machines."""
    licence = {
        "@type": "sc:CreativeWork",
        "name": f"Contract of {contract.owner}, signed; not a public licence",
        "url": "contract.toml",
        "identifier": f"sha256:{digest}",
        "version": contract.serial,
        "dateCreated": contract.issued.isoformat(),
        "expires": contract.until.isoformat(),
    }
    free = [p for p in contract.purposes if p not in ("merge", "serve")]
    uses: list[tuple[list[str], tuple[str, ...]]] = [(free, ())] if free else []
    for purpose, members in (("merge", contract.may_merge), ("serve", contract.may_serve)):
        if purpose in contract.purposes and members:
            uses.append(([purpose], members))
    offer = {
        "@type": ["sc:CreativeWork", "odrl:Offer"],
        "name": f"Terms of {contract.owner}",
        "odrl:assigner": {"@id": f"urn:hagane:owner:{contract.owner}"},
        "odrl:permission": [_permission(contract, target, purposes, members) for purposes, members in uses],
    }
    return {
        "license": licence,
        "usageInfo": offer,
        "conditionsOfAccess": (
            f"Only at {', '.join(contract.sites)} in {', '.join(contract.residency)}, for "
            f"{', '.join(contract.purposes)}, until {contract.until}; withdrawal class {contract.withdrawal}; "
            f"protection: {contract.protection}; may merge: {', '.join(contract.may_merge) or 'nobody'}; "
            f"may serve: {', '.join(contract.may_serve) or 'nobody'}."
        ),
    }


def _permission(contract: Contract, target: str, purposes: list[str], members: tuple[str, ...]) -> dict[str, Any]:
    """Some purposes; for anybody whom place and time allow, or for some members only."""
    return {
        "@type": "odrl:Permission",
        "odrl:action": {"@id": "odrl:use"},
        "odrl:target": {"@id": target},
        "odrl:constraint": [
            _constraint("odrl:purpose", "odrl:isAnyOf", purposes),
            _constraint("odrl:spatial", "odrl:isAnyOf", list(contract.residency), "countries (ISO 3166-1)"),
            _constraint("odrl:spatial", "odrl:isAnyOf", list(contract.sites), "sites"),
            _constraint("odrl:dateTime", "odrl:gteq", {"@value": contract.issued.isoformat(), "@type": "sc:Date"}),
            _constraint("odrl:dateTime", "odrl:lteq", {"@value": contract.until.isoformat(), "@type": "sc:Date"}),
            *([_constraint("odrl:recipient", "odrl:isAnyOf", list(members), "members")] if members else []),
        ],
    }


def _responsible(catalog: Catalog, name: str, machine: Embodiment, contract: Contract) -> dict[str, Any]:
    facts = episodes_of(catalog, name)
    found = sum(len(e.findings) for e in facts)
    kinds = sorted({k for e in facts for k in e.findings})
    outcomes = ", ".join(f"{n} {kind or 'unknown'}" for kind, n in sorted(Counter(e.outcome for e in facts).items()))
    return {
        "rai:dataCollection": f"Recorded on the machine {machine.name}; outcomes of its episodes: {outcomes}.",
        "rai:dataCollectionType": "Physical data collection",
        "rai:dataCollectionMissingData": (
            "Every value has a validity flag; missing and refused readings are not valid, and nothing is filled in."
        ),
        "rai:dataPreprocessingProtocol": (
            "Units are checked and never converted. On the control grid a value is the latest before its control "
            "time, with its age beside it; between commands the last one holds."
        ),
        "rai:dataLimitations": f"Checks on the way in noted {found} findings ({', '.join(kinds) or 'none'}).",
        "rai:dataUseCases": list(contract.purposes),
        "rai:dataReleaseMaintenancePlan": (
            f"The content never changes under this name. The owner may withdraw it (class {contract.withdrawal})."
        ),
    }


def _file(file: FileFacts) -> dict[str, Any]:
    suffix = PurePosixPath(file.path).suffix
    return {
        "@type": "cr:FileObject",
        "@id": file.path,
        "name": PurePosixPath(file.path).name,
        "contentUrl": file.path,
        "contentSize": f"{file.size} B",
        "encodingFormat": _TYPES.get(suffix, "application/octet-stream"),
        "sha256": file.sha256,
    }


def _constraint(left: str, operator: str, right: object, name: str = "") -> Mapping[str, Any]:
    named = {"name": name} if name else {}
    return {
        "@type": "odrl:Constraint",
        **named,
        "odrl:leftOperand": {"@id": left},
        "odrl:operator": {"@id": operator},
        "odrl:rightOperand": right,
    }


def _named_by_content(digest: str) -> str:
    return "ni:///sha-256;" + base64.urlsafe_b64encode(bytes.fromhex(digest)).decode().rstrip("=")
