"""The whole way under the keeper, by the real verbs and real jails, with a recipe that is an attacker."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from hagane.catalog.sealing import renew_set
from hagane.cli import wants
from hagane.seal import Keyring, TrustStore, check_folder, load_contract, unseal_folder
from tests.jail_fixture import why_not
from tests.keeper_fixture import NAME, OWNER, ROOT, Place, carriers, intake, make_place, outside, shared_runs, sign

WHY = why_not()
pytestmark = pytest.mark.skipif(bool(WHY), reason=f"no jails here: {WHY}")
TOKEN = bytes.fromhex("9f3ac1e5027bd846115efd0c93a8b7e2")

HOSTILE = """
import base64, ctypes, os, socket, sys
from dataclasses import replace
from pathlib import Path
from hagane.train.recipes import RECIPES

TOKEN = bytes.fromhex("{token}")
FORMS = (TOKEN, TOKEN.hex().encode(), base64.b64encode(TOKEN))
RUN, SITE, DISK = Path("{run}"), Path("{site}"), Path("{disk}")

def tries(work):
    try:
        work()
    except BaseException:
        pass

def put(path, data=TOKEN):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)

def everywhere():
    for place in (SITE, SITE / "keys", SITE / "catalog" / "sets", DISK, RUN.parent, RUN, Path("/tmp")):
        tries(lambda: put(place / FORMS[1].decode(), FORMS[1]))
    for path in (SITE / "ledger.jsonl", SITE / "site.toml", *SITE.glob("keys/*")):
        tries(lambda: path.open("ab").write(FORMS[1]))
        tries(lambda: put(DISK / "stolen", path.read_bytes()))

def telling():
    from hagane.cli.inside import broker
    b = broker()
    text = FORMS[1].decode()
    digests = [text + text]
    for kind in ("checkpoint", "skip", "mixture", "export", "jail", text):
        tries(lambda: b.note(kind, dict(run="first", dataset="{name}", checkpoint=digests[0], manifest=digests[0])))
    for dataset, purpose in ((text, "anchor"), ("{name}", text), ("{name}", "export"), ("{name}", "view")):
        tries(lambda: b.ask(dataset, purpose))
    for shard in (text, text[:32]):
        tries(lambda: b.key("{name}", shard))
    for event, fields in (("failed", dict(error=text)), (text, dict()), ("metrics", {{"loss/" + text: 1.0}}),
                          ("row", dict(case=text, who=text, score=1, n=1)), ("checkpoint", dict(step=text))):
        tries(lambda: b.tell(event, fields))
    for _ in range(2000):
        tries(lambda: b.tell("checkpoint", dict(step=1)))

def leaving():
    text = FORMS[1].decode()
    for name in (text, "scorecards/" + text + ".json", "checkpoints/" + text + "/manifest.json",
                 "checkpoints/step-000001/" + text, "checkpoints/step-000001/manifest.json"):
        tries(lambda: put(RUN / name))
    tries(lambda: put(SITE / "catalog" / "cache" / ("{name}-" + text) / "index.json"))
    tries(lambda: (RUN / "checkpoints" / "step-000002").symlink_to("{host}"))

def talking():
    for family in (socket.AF_UNIX, socket.AF_INET, 40):
        tries(lambda: socket.socket(family, socket.SOCK_STREAM))
    for form in FORMS:
        os.write(1, b"\\x1b]0;" + form + b"\\x07")
        os.write(2, form)

def attack(datasets):
    if "HAGANE_BROKER" in os.environ:
        for work in (everywhere, telling, leaving, talking):
            tries(work)
        tries(lambda: ctypes.CDLL(None).syscall(165, b"none", b"/tmp", b"tmpfs", 0, 0))
    else:
        everywhere()
    if os.environ.get("HAGANE_BROKER"):
        os._exit(157)
    return RECIPES["tiny"](datasets)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A site with one data set that lies sealed."""
    made = make_place(tmp_path_factory.mktemp("keeper"))
    said = intake(made, sign(made, NAME, "anchor", "member-training", "evaluate"))
    assert said.code == 0, said.all
    return made


def hostile(place: Place, to: Path) -> Path:
    """A recipe that is an attacker, and a folder outside that it would like to write to."""
    host = to / "host"
    host.mkdir()
    (host / "manifest.json").write_bytes(b"<the host's own>")
    recipe = to / "recipe.py"
    words = {"token": TOKEN.hex(), "run": place.run("hostile"), "site": place.site, "disk": to, "name": NAME}
    recipe.write_text(HOSTILE.format(**words, host=host))
    return recipe


def test_a_hostile_recipe_gets_nothing_out(place: Place, tmp_path: Path) -> None:
    recipe = hostile(place, tmp_path)
    there = {p for p, _ in outside(place.path, tmp_path)}
    ledger = len(place.ledger())
    said = place.train("--recipe", f"{recipe}:attack", run="hostile")
    assert said.code == 1  # 157 inside: of an exit code comes out that it is not 0
    new = [p for p, _ in outside(place.path, tmp_path) if p not in there]
    recipe.unlink()  # it holds the token, as code that came from outside does
    assert carriers(TOKEN, said, [place.path, tmp_path]) == []
    run = place.run("hostile")
    assert {p for p in new if "sealed" not in p.parts} <= {
        place.site / "keys" / "consortium.keys",
        *(run / name for name in ("lineage.json", "metrics.jsonl", ".keeper.lock")),
    }
    printed = tmp_path / "printed"
    unseal_folder(run / "sealed" / "rest", printed, Keyring(place.site / "keys"))
    assert TOKEN in (printed / "stdout.txt").read_bytes()  # it did run, and its text is kept for the owner
    entries = place.ledger()[ledger:]
    assert {e["type"] for e in entries} <= {"read", "jail", "sealed", "refusal", "ask"}
    assert len(entries) < 12
    assert "\x1b" not in said.all


def test_what_stands_open_of_a_sealed_set_is_listed(place: Place) -> None:
    logs = [p.read_bytes() for p in (place.path / "logs").iterdir()]
    assert shared_runs([b"the same 16 bytes!" + logs[0][:0]], [(Path("x"), b"..the same 16 bytes!..")])
    catalog = place.site / "catalog"
    secret = [log[i * 4000 : i * 4000 + 400] for log in logs for i in range(len(log) // 4000)]
    assert secret and shared_runs(secret, outside(catalog)) == {}
    opened = {p.name for p, _ in outside(catalog / "sets", catalog / "cache") if p.suffix != ".sealed"}
    assert opened == {"contract.toml", "contract.toml.sig", "record.json", "sealed.json"}


def test_a_refusal_starts_nothing(place: Place, tmp_path: Path) -> None:
    copy = place.copy(tmp_path / "copy")
    before = len(copy.ledger())
    said = copy.hagane("train", "--recipe", "tiny", "--run", copy.run("no"), "--home", copy.site, "--datasets", "none")
    assert said.code == 1
    (copy.site / "site.toml.sig").unlink()
    said = copy.train("--recipe", "tiny", run="unsigned")
    assert said.code == 1 and "not signed by the consortium" in said.err, said.all
    entries = copy.ledger()[before:]
    assert [e["type"] for e in entries] == ["refusal"]
    assert not copy.run("unsigned").exists() and not copy.run("no").exists()


def test_text_of_a_run_is_for_those_who_may_look(place: Place) -> None:
    run, before = place.run("hostile"), len(place.ledger())
    said = place.hagane("jail", "log", run, "--home", place.site)
    assert said.code == 1 and "view" in said.err and TOKEN.hex() not in said.all
    assert [e["type"] for e in place.ledger()[before:]] == ["refusal"]
    contract = sign(place, NAME, "anchor", "evaluate", "view", serial="2")
    keyring = Keyring(place.site / "keys")
    folder = place.site / "catalog" / "sets" / NAME
    renew_set(folder, load_contract(contract, TrustStore(place.site / "trust")), keyring)
    said = place.good("jail", "log", run, "--home", place.site)
    assert TOKEN.hex() in said.out and "\x1b" not in said.all
    assert place.ledger()[-1]["type"] == "read"


@pytest.mark.parametrize("faulty", [False, True], ids=["", "planted-fault"])
def test_a_recipe_is_asked_for_its_wants_where_it_reaches_no_keys(
    faulty: bool, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = next((place.site / "keys").glob("*.keys"))
    recipe = tmp_path / "thief.py"
    recipe.write_text(
        "from pathlib import Path\nfrom hagane.train.recipes import RECIPES\ndef steal(names):\n"
        f"    try:\n        Path({str(tmp_path / 'stolen')!r}).write_bytes(Path({str(keys)!r}).read_bytes())\n"
        "    except OSError:\n        pass\n    return RECIPES['tiny'](names)\n"
    )
    if faulty:
        monkeypatch.setattr(wants, "asks_for_jail", lambda _: False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    told = wants.ask_wants(["--recipe", f"{recipe}:steal"], [NAME], recipe, place.site)
    assert json.loads(told)["datasets"] == [NAME]
    assert (tmp_path / "stolen").exists() == faulty


@pytest.mark.slow
def test_train_resume_evaluate_and_what_lies_open(place: Place, tmp_path: Path) -> None:
    copy = place.copy(tmp_path / "copy")
    whole = copy.train("--recipe", "tiny", "--steps", "24", run="whole")
    assert whole.code == 0, whole.all
    process = copy.begin("train", "--recipe", "tiny", "--steps", "24", "--run", copy.run("cut"), "--home", copy.site)
    assert process.stdout is not None
    for line in process.stdout:
        if "step 10/24" in line or "step 19/24" in line:
            process.terminate()
            break
    process.communicate()
    assert process.returncode == 0
    assert copy.train("--resume", run="cut").code == 0
    curves = [(copy.run(n) / "metrics.jsonl").read_text().splitlines() for n in ("whole", "cut")]
    assert len(curves[0]) == 24
    losses = [[(m["step"], m["loss"]) for m in map(json.loads, c)] for c in curves]
    assert losses[0] == losses[1]
    out = copy.good("evaluate", copy.run("whole"), "--world", "mill", "--trials", "1", "--home", copy.site).out
    assert "ours" in out and "expert" in out
    moved = copy.path / "elsewhere"
    copy.run("whole").rename(moved)
    out = copy.good("evaluate", moved, "--world", "mill", "--trials", "1", "--home", copy.site).out
    assert "ours" in out
    assert OWNER.encode() in (moved / "lineage.json").read_bytes()


@pytest.mark.slow
def test_a_keeper_that_is_killed_leaves_the_checkpoints_that_were_whole(place: Place, tmp_path: Path) -> None:
    copy = place.copy(tmp_path / "copy")
    process = copy.begin("train", "--recipe", "tiny", "--steps", "2000", "--run", copy.run("cut"), "--home", copy.site)
    sealed = copy.run("cut") / "sealed"
    while process.poll() is None and not list(sealed.glob("step-*/sealed.json")):
        time.sleep(0.05)
    process.kill()
    said = process.communicate()
    whole = [p.parent for p in sealed.glob("step-*/sealed.json")]
    assert process.returncode == -9 and whole, said
    assert all(check_folder(p) for p in whole)
    noted = [e["what"]["folder"] for e in copy.ledger() if e["type"] == "sealed"]  # type: ignore[index]
    assert {*(p.name for p in whole), "rest"} >= set(noted) and noted[0] == "rest"
    resumed = copy.begin("train", "--resume", "--run", copy.run("cut"), "--home", copy.site)
    assert resumed.stdout is not None
    first = next((line for line in resumed.stdout if "loss" in line), "")
    resumed.terminate()
    assert first, resumed.communicate()
    resumed.communicate()
    assert int(first.split("/")[0].split()[-1]) > int(min(whole).name.removeprefix("step-")), first
