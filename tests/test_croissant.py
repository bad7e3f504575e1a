"""Croissant 1.1 beside every export: what the specification requires, a JSON-LD context that means it, the owner's
terms, and every file's sha256. Where mlcroissant (the reference implementation) is installed it validates and reads
the records too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from hagane.catalog.croissant import CONTEXT, VERSION
from hagane.catalog.export import Format, export_set
from hagane.catalog.export_parquet import Layout
from tests.catalog_fixture import ARM, MILL, ROAD, episodes, make_home

TERMS: dict[str, object] = {
    "purposes": ("view", "export", "serve"),
    "until": date(2031, 3, 31),
    "withdrawal": "E",
    "may_serve": ("member-robots",),
}
REQUIRED = ("@context", "@type", "conformsTo", "description", "license", "name", "url", "creator", "datePublished")
"""Of every data set, by the specification's section "Required" (distribution is required by its next section)."""
KINDS: tuple[tuple[Format, Layout], ...] = (("lerobot", "wide"), ("parquet", "wide"), ("parquet", "long"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three machines in every format."""
    root = tmp_path_factory.mktemp("croissant")
    home = make_home(root / "site")
    catalog, out = home.catalog(), {}
    for machine in (ARM, ROAD, MILL):
        terms = home.contract(machine, **TERMS)
        catalog.add(f"{machine.name}-demo", machine, terms, episodes(machine, 3))
        for to, layout in KINDS:
            folder = root / f"{machine.name}-{to}-{layout}"
            export_set(catalog, f"{machine.name}-demo", to, folder, layout=layout, today=lambda: date(2026, 11, 24))
            out[folder.name] = folder
    return out


def described(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / "croissant.json").read_bytes())
    return told


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in the tree, the context left out."""
    if isinstance(value, dict):
        yield value
        for key, inner in value.items():
            if key != "@context":
                yield from nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes(inner)


def test_what_the_specification_requires_is_there(exported: dict[str, Path]) -> None:
    for name, folder in exported.items():
        told = described(folder)
        assert not [k for k in (*REQUIRED, "distribution", "recordSet") if not told.get(k)], name
        assert told["@type"] == "sc:Dataset" and VERSION in told["conformsTo"]
        assert date.fromisoformat(told["datePublished"]) == date(2026, 11, 24)
        assert {n["@type"] for n in told["distribution"]} == {"cr:FileObject", "cr:FileSet"}


def test_ids_are_unique_and_every_reference_leads_somewhere(exported: dict[str, Path]) -> None:
    for name, folder in exported.items():
        told = described(folder)
        made = [n["@id"] for n in nodes(told) if "@id" in n and "@type" in n]
        assert len(set(made)) == len(made), name
        outside = ("odrl:", "urn:", "ni:")
        loose = [n["@id"] for n in nodes(told) if set(n) == {"@id"} and not n["@id"].startswith(outside)]
        assert loose and set(loose) <= set(made), name
        for table in told["recordSet"]:
            assert all(f["@id"].startswith(table["@id"] + "/") for f in table["field"])


def test_every_file_is_listed_with_its_digest(exported: dict[str, Path]) -> None:
    for folder in exported.values():
        told = {f["@id"]: f for f in described(folder)["distribution"] if f["@type"] == "cr:FileObject"}
        files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
        assert set(told) == set(files) - {"croissant.json", "manifest.json"}
        for path, f in told.items():
            data = files[path].read_bytes()
            assert f["sha256"] == hashlib.sha256(data).hexdigest() and f["contentSize"] == f"{len(data)} B"
            assert f["contentUrl"] == path and f["encodingFormat"]


def test_file_sets_match_files(exported: dict[str, Path]) -> None:
    for folder in exported.values():
        for s in (s for s in described(folder)["distribution"] if s["@type"] == "cr:FileSet"):
            assert list(folder.glob(s["includes"])), s


def test_the_context_is_the_specifications_own() -> None:
    """Appendix 1 of the specification; of its terms none is missing and none means something else."""
    for term in ("recordSet", "field", "source", "extract", "column", "isArray", "arrayShape", "annotation", "fileSet"):
        assert CONTEXT[term] == f"cr:{term}"
    assert CONTEXT["cr"] == "http://mlcommons.org/croissant/" and CONTEXT["dct"] == "http://purl.org/dc/terms/"
    assert CONTEXT["conformsTo"] == "dct:conformsTo" and CONTEXT["@vocab"].endswith("schema.org/")
    assert CONTEXT["dataType"] == {"@id": "cr:dataType", "@type": "@vocab"}
    assert CONTEXT["data"]["@type"] == CONTEXT["examples"]["@type"] == "@json"


def test_every_prefix_is_declared(exported: dict[str, Path]) -> None:
    for folder in exported.values():
        told = described(folder)
        used = {k.split(":")[0] for n in nodes(told) for k in n if ":" in k and not k.startswith("@")}
        types = {str(t) for n in nodes(told) for t in _many(n.get("@type")) + _many(n.get("dataType"))}
        assert used | {t.split(":")[0] for t in types} <= set(CONTEXT), used


def _many(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value is not None else []


def test_owner_terms_and_residency_are_said(exported: dict[str, Path]) -> None:
    for folder in exported.values():
        told = described(folder)
        digest = hashlib.sha256((folder / "contract.toml").read_bytes()).hexdigest()
        owner = told["creator"]["name"]
        assert owner.startswith("member-") and told["copyrightHolder"]["name"] == owner
        assert told["license"]["identifier"] == f"sha256:{digest}" and told["license"]["url"] == "contract.toml"
        assert told["license"]["expires"] == "2031-03-31"
        offer = told["usageInfo"]
        assert "odrl:Offer" in offer["@type"]
        use, serve = offer["odrl:permission"]
        assert {use["odrl:target"]["@id"], serve["odrl:target"]["@id"]} == {told["url"]}
        told_serve = [(c["odrl:leftOperand"]["@id"], c["odrl:rightOperand"]) for c in serve["odrl:constraint"]]
        assert ("odrl:purpose", ["serve"]) in told_serve and ("odrl:recipient", ["member-robots"]) in told_serve
        limits = [(c["odrl:leftOperand"]["@id"], c["odrl:rightOperand"]) for c in use["odrl:constraint"]]
        assert ("odrl:purpose", ["view", "export"]) in limits
        assert ("odrl:spatial", ["JP"]) in limits and ("odrl:spatial", ["plant-7"]) in limits
        assert any(left == "odrl:dateTime" and right["@value"] == "2031-03-31" for left, right in limits)
        for word in ("JP", "plant-7", "export", "2031-03-31", "class E", "process", "may merge: nobody"):
            assert word in told["conditionsOfAccess"]
        assert (
            told["rai:dataUseCases"] == ["view", "export", "serve"]
            and "class E" in told["rai:dataReleaseMaintenancePlan"]
        )
        assert "findings" in told["rai:dataLimitations"] and "stuck" in told["rai:dataLimitations"]


def test_fields_carry_types_shapes_and_units(exported: dict[str, Path]) -> None:
    fields = {f["@id"]: f for t in described(exported["arm-lerobot-wide"])["recordSet"] for f in t["field"]}
    joints = fields["frames/observation.joints"]
    assert (joints["dataType"], joints["isArray"], joints["arrayShape"]) == ("sc:Float", True, "3")
    assert joints["unitText"] == "rad" and fields["frames/timestamp"]["unitText"] == "s"
    assert fields["frames/observation.joints.age_s"]["unitText"] == "s"
    assert fields["frames/episode_index"]["dataType"] == "sc:Integer"
    wide = {f["@id"]: f for t in described(exported["arm-parquet-wide"])["recordSet"] for f in t["field"]}
    assert wide["samples/joints.2"]["unitText"] == "rad" and wide["samples/time_ns"]["unitText"] == "ns"
    assert wide["samples/word"]["dataType"] == "sc:Text" and wide["samples/grip.valid"]["dataType"] == "sc:Boolean"


def test_the_reference_implementation_agrees(exported: dict[str, Path]) -> None:
    mlc = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed")
    for name, folder in exported.items():
        data = mlc.Dataset(jsonld=str(folder / "croissant.json"))
        assert not data.metadata.ctx.issues.errors and not data.metadata.ctx.issues.warnings, name
        for table in data.metadata.record_sets:
            assert next(iter(data.records(table.uuid))), f"{name} {table.uuid}"
