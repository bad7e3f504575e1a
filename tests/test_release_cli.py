"""`hagane release`: exported weights leave by one command, serve afterwards, and are noted; so are refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hagane.cli import main
from hagane.engine import save_checkpoint
from hagane.model import read_manifest
from hagane.policy import load_policy
from hagane.seal import Ledger, TrustStore, generate_key, public_of
from hagane.terms import RunRecord
from tests.checkpoint_fixture import trained
from tests.model_fixture import ROAD, make_part

HEX = "0123456789abcdef" * 4
RECORD = RunRecord(
    "first", HEX, HEX, {"arm-demo": HEX}, {"arm-demo": HEX}, {"arm-demo": "member-robots"}, 7, 1,
    environment={"note": "any text that somebody wants to have outside"},
)  # fmt: skip
OWNERS = ("consortium", "member-cars", "member-robots")


@dataclass(frozen=True)
class Scene:
    home: Path
    weights: Path
    model: Path

    def make(self, out: str, *more: object, owners: tuple[str, ...] = OWNERS, source: Path | None = None) -> int:
        keys = [f"{owner}={self.home / owner}.pem" for owner in owners]
        args = [source or self.weights, "--out", self.home / out, "--model", self.model, "--home", self.home]
        return main(["release", "make", *map(str, [*args, "--key", *keys, *more])])

    def last(self) -> dict[str, object]:
        return dict(list(Ledger(self.home / "ledger.jsonl").entries())[-1].body)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    home = tmp_path_factory.mktemp("home")
    save_checkpoint(home / "runs" / "r" / "checkpoints", trained(1), RECORD, {"data": "x"})
    assert main(["export", str(home / "runs" / "r"), "--out", str(home / "weights")]) == 0
    shutil.copyfile(home / "weights" / "model.toml", home / "model.toml")
    (home / "site.toml").write_text('name = "lab"\ncountry = "JP"\noperator = "consortium"\n')
    for owner in OWNERS:
        TrustStore(home / "trust").add(owner, public_of(generate_key(home / f"{owner}.pem")))
    return Scene(home, home / "weights", home / "model.toml")


def figures(scene: Scene, **changes: object) -> Path:
    row = {"dataset": "arm-demo", "attack": "loss", "members": 8, "others": 8, "auc": 0.5312, "low": 0.4, "high": 0.66,
           "tpr_at_1_percent": 0.0}  # fmt: skip
    table = {"checkpoint": read_manifest(scene.weights).source, "rows": [{**row, **changes}]}
    path = scene.home / "membership.json"
    path.write_text(json.dumps(table))
    return path


def test_released_weights_serve_and_say_what_is_known(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    assert scene.make("out", "--membership", figures(scene)) == 0
    a, b = load_policy(scene.weights), load_policy(scene.home / "out")
    part = make_part(ROAD, 2).observation
    assert np.array_equal(a.act(part).actions_NHA, b.act(part).actions_NHA)
    manifest = read_manifest(scene.home / "out")
    assert manifest.source == read_manifest(scene.weights).source
    assert manifest.record.datasets == RECORD.datasets and not manifest.record.environment
    assert not any(b"somebody wants" in p.read_bytes() for p in (scene.home / "out").iterdir())
    assert main(["release", "check", str(scene.home / "out"), "--trust", str(scene.home / "trust")]) == 0
    told = capsys.readouterr().out
    assert "signed by consortium, member-cars, member-robots" in told
    assert "arm-demo, loss: AUC 0.5312 [0.4, 0.66]" in told and "not excluded" in told
    entry = scene.last()
    assert entry["allowed"] is True and f"statement {entry['statement_sha256']}" in told
    assert entry["lineage"]["checkpoint"] == manifest.source and entry["membership"]["rows"][0]["auc"] == 0.5312  # type: ignore[index]


def test_a_member_takes_its_own_part_against_the_anchor_and_rounded(scene: Scene) -> None:
    assert scene.make("mine", "--only", "member-cars", owners=("member-cars",)) == 0
    assert [p.name for p in sorted((scene.home / "mine").iterdir())] == [
        "member-cars.00001-of-00001.safetensors",
        "release.json",
    ]
    assert scene.make("anchored", "--anchor", scene.weights, "--round", "bf16") == 0
    before = load_file(scene.weights / "member-cars.00001-of-00001.safetensors")
    after = load_file(scene.home / "anchored" / "member-cars.00001-of-00001.safetensors")
    assert all(torch.equal(t.bfloat16().float(), after[n]) for n, t in before.items())
    frozen = "consortium.00001-of-00001.safetensors"
    assert all(
        torch.equal(t, load_file(scene.home / "anchored" / frozen)[n])
        for n, t in load_file(scene.weights / frozen).items()
    )


def refused(scene: Scene, capsys: pytest.CaptureFixture[str], words: str, *more: object, **how: object) -> None:
    assert scene.make("no", *more, **how) == 1  # type: ignore[arg-type]
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err, err
    assert not (scene.home / "no").exists() and not (scene.home / ".making-no").exists()
    entry = scene.last()
    assert entry["allowed"] is False and words in str(entry["reason"])


def test_what_is_refused_leaves_nothing_and_is_noted(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    refused(scene, capsys, "'member-robots' does not sign", owners=("consortium", "member-cars"))
    refused(scene, capsys, "more than the budget", "--budget-mib", 1)
    refused(scene, capsys, "has to come from outside", "--model", scene.weights / "model.toml")
    refused(scene, capsys, "has no part in this model", "--only", "member-x")
    refused(scene, capsys, "is no share", "--membership", figures(scene, auc=0.53125))
    refused(scene, capsys, "a row has other parts", "--membership", figures(scene, note="text"))
    refused(scene, capsys, "is no plain name", "--membership", figures(scene, dataset="Any text"))
    path = figures(scene)
    path.write_text(path.read_text().replace(read_manifest(scene.weights).source, HEX))
    refused(scene, capsys, "about other weights", "--membership", path)


def test_changed_weights_are_refused(scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(scene.weights, tmp_path / "w"))
    path = copy / "member-cars.00001-of-00001.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    save_file({**tensors, name: tensors[name] * torch.nan}, path, {"format": "pt"})
    refused(scene, capsys, "not finite", source=copy)
    save_file({**tensors, "tower.extra": tensors[name].clone()}, path, {"format": "pt"})
    refused(scene, capsys, "on no list", source=copy)
    save_file(tensors, path, {"format": "pt", "note": "x"})
    refused(scene, capsys, "notes that nobody asked for", source=copy)
    save_file(tensors, path, {"format": "pt"})
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["record"]["owners"]["arm-demo"] = "Robots Inc., for the attention of"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    refused(scene, capsys, "no manifest of digests, names and counts", source=copy)
    assert main(["release", "check", str(copy), "--trust", str(scene.home / "trust")]) == 1
    assert "no signed release" in capsys.readouterr().err
