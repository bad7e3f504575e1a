"""Weights as plain safetensors and back: bounded files by owner, one tensor in memory, the same policy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hagane.cli import main
from hagane.engine import load_engine, save_checkpoint, start_from
from hagane.model import read_manifest
from hagane.model.chunks import Chunk, write_chunks
from hagane.model.export import export_weights
from hagane.model.weights import make_manifest
from hagane.policy import load_policy
from hagane.terms import digest_file, dump_toml
from tests.checkpoint_fixture import RECORD, files_of, flip, fresh, trained
from tests.model_fixture import ROAD, make_part, shape_of


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/r with a checkpoint, and its export beside it in files of about 1 MiB."""
    home = tmp_path_factory.mktemp("home")
    save_checkpoint(home / "runs" / "r" / "checkpoints", trained(1), RECORD, {"data": "x"})
    assert main(["export", str(home / "runs" / "r"), "--out", str(home / "out"), "--file-gib", "0.001"]) == 0
    return home / "out"


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "out"))


def test_plain_readers_read_it(exported: Path) -> None:
    index = json.loads((exported / "model.safetensors.index.json").read_text())
    seen: dict[str, torch.Tensor] = {}
    for path in sorted(exported.glob("*.safetensors")):
        tensors = load_file(path)
        assert {index["weight_map"][n] for n in tensors} == {path.name}
        assert path.stat().st_size < 2**20 * 1.1 or len(tensors) == 1
        seen |= tensors
    assert set(seen) == set(index["weight_map"])
    assert sum(t.nbytes for t in seen.values()) == index["metadata"]["total_size"]
    load_engine(exported.parent / "runs/r/checkpoints/step-000001", engine := fresh())
    assert torch.equal(seen["tower.norm.gain"], engine.ema["tower.norm.gain"])
    assert torch.equal(seen["tower.w_out.arm"], engine.ema["tower.w_out"][0])
    assert {p.name.split(".")[0] for p in exported.glob("*.safetensors")} == {
        "consortium", "member-cars", "member-robots"
    }  # fmt: skip


def test_it_serves_and_starts_runs_like_its_checkpoint(exported: Path) -> None:
    source = exported.parent / "runs" / "r" / "checkpoints" / "step-000001"
    a, b = load_policy(source), load_policy(exported)
    part = make_part(ROAD, 2).observation
    assert np.array_equal(a.act(part).actions_NHA, b.act(part).actions_NHA)
    manifest = read_manifest(exported)
    assert manifest.source == a.checkpoint_id and b.checkpoint_id == manifest.id != manifest.source
    assert manifest.record == read_manifest(source).record
    start_from(source, one := fresh())
    start_from(exported, two := fresh())
    assert all(torch.equal(t, two.local[n]) for n, t in one.local.items())
    assert export_weights(exported, exported.parent / "again").source == manifest.id
    again = load_policy(exported.parent / "again").model.state_dict()
    assert all(torch.equal(t, again[n]) for n, t in b.model.state_dict().items())


def test_an_auditor_traces_checkpoint_and_export(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (exported.parent / "runs" / "r", exported):
        assert main(["audit", "trace", str(place)]) == 0
        said = capsys.readouterr().out
        assert "weights   member-cars:" in said and "data set    arm-demo, owner member-robots" in said
        assert f"id        {load_policy(exported).checkpoint_id}" in said or place != exported


def refused(capsys: pytest.CaptureFixture[str], words: str, *argv: object) -> None:
    capsys.readouterr()
    assert main(["export", *map(str, argv)]) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("hagane export: ") == 1 and "Traceback" not in said, said


def test_damage_stops_an_export_and_nothing_is_left(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shutil.copytree(exported.parent / "runs", tmp_path / "runs") / "r" / "checkpoints" / "step-000001"
    refused(capsys, "is there already", source, "--out", exported)
    refused(capsys, "say one of --out DIR and --back", source)
    victim = next((source / "served").iterdir())
    flip(victim, 3000)
    refused(capsys, f"{victim.name}: differs from its sha256", source, "--out", tmp_path / "out")
    victim.unlink()
    refused(capsys, f"{victim.name}: is missing", source, "--out", tmp_path / "out")
    refused(capsys, "no complete checkpoint", tmp_path, "--out", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_a_full_disk_leaves_no_half_export(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import hagane.model.export as export

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device", "weights")

    monkeypatch.setattr(export, "read_chunks", full)
    refused(capsys, "No space left on device", exported, "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.toml", "model.safetensors.index.json", "manifest.json", "member-cars."])
def test_a_flipped_byte_of_an_export_is_found(copy: Path, name: str) -> None:
    path = next(p for p in files_of(copy) if p.name.startswith(name))
    flip(path, path.stat().st_size // 2, 0)
    with pytest.raises(Exception, match=path.name):
        load_policy(copy)


def test_it_comes_back_after_another_tool_wrote_it(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_manifest(copy)
    tensors = {n: t for p in copy.glob("*.safetensors") for n, t in load_file(p).items()}
    for path in (*copy.glob("*.safetensors"), copy / "model.safetensors.index.json"):
        path.unlink()
    tensors["tower.norm.gain"] *= 2
    (copy / "README.md").write_text("what the other tool says of it")
    save_file(tensors, copy / "all.safetensors")
    with pytest.raises(Exception, match="is not named by the manifest"):
        load_policy(copy)
    assert main(["export", "--back", str(copy)]) == 0
    policy, manifest = load_policy(copy), read_manifest(copy)
    assert torch.equal(policy.model.tower.norm.gain, tensors["tower.norm.gain"])
    assert (manifest.source, manifest.record) == (before.id, before.record)
    gone = tensors.pop("tower.w_out.arm")
    save_file(tensors, copy / "all.safetensors")
    refused(capsys, "it lacks 'tower.w_out.arm'", "--back", copy)
    save_file({**tensors, "tower.w_out.arm": gone[:1].clone()}, copy / "all.safetensors")
    refused(capsys, "'tower.w_out.arm' has shape (1, ", "--back", copy)
    save_file({**tensors, "tower.w_out.arm": gone, "extra": gone.clone()}, copy / "all.safetensors")
    refused(capsys, "it holds 'extra'", "--back", copy)
    (copy / "manifest.json").unlink()
    refused(capsys, "no complete checkpoint", "--back", copy)


MEASURE = """
import resource, sys
from pathlib import Path
from hagane.model.export import export_weights
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
export_weights(Path(sys.argv[1]), Path(sys.argv[2]), 2**20 * 16)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_about_one_tensor_whatever_the_size(tmp_path: Path) -> None:
    checkpoint, files = tmp_path / "step-000001", {}
    for rank in range(2):  # 48 tensors of 4 MiB, each in two halves
        for k in range(48):
            half = Chunk(f"t{k:02d}", torch.full((512, 1024), float(k)), (512 * rank, 0), (1024, 1024))
            write_chunks(checkpoint / "served", {f"member-{k % 3}": [half]}, rank * 48 + k)
    (checkpoint / "model.toml").write_text(dump_toml(shape_of()))
    for path in files_of(checkpoint):
        files[path.relative_to(checkpoint).as_posix()] = digest_file(path)
    manifest = make_manifest(1, {}, RECORD, files)
    (checkpoint / "manifest.json").write_text(json.dumps(asdict(manifest)))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(checkpoint), str(tmp_path / "out")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    grown = int(done.stdout) / 1024
    assert grown < 40, f"{grown:.0f} MiB for tensors of 4 MiB, 192 MiB in all"
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 12
    assert torch.equal(
        load_file(tmp_path / "out" / "member-2.00002-of-00004.safetensors")["t14"][700], torch.full((1024,), 14.0)
    )
