"""`hagane demo`: the whole loop on one small machine, told as it runs.

Members' machines write logs, contracts are signed, one is refused, logs come in, one generalist is trained and
judged closed loop, served, and drives three machines through the guard; a page shows it all.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from time import monotonic

from hagane.catalog import Catalog
from hagane.console.story import Drive, Intake, LedgerHead, Lineage, Refusal, Source, Story
from hagane.demo.members import MEMBERS, write_logs
from hagane.demo.server import served
from hagane.demo.site import ABROAD, contract, found_site, sign_abroad, sign_contracts
from hagane.demo.teller import Teller
from hagane.seal import TrustStore, load_site, root_key
from hagane.terms import APPLIED, HaganeError

EPISODES = {"arm": 40, "road": 100, "mill": 64}
"""Evaluation seeds of each case."""


@dataclass(frozen=True)
class Plan:
    """How much of the loop to run: the demo, or a small version of it for tests."""

    out: Path
    """Folder for everything that is made."""
    recipe: str = "demo"
    """Training recipe."""
    share: float = 1.0
    """Share of the demo's episodes and trials."""

    def count(self, whole: int) -> int:
        """That share of a number, at least 2."""
        return max(2, round(whole * self.share))

    @property
    def run(self) -> Path:
        """The training run's folder."""
        return self.out / "runs" / "demo"


def tell(plan: Plan, run_verb: Callable[[Sequence[str]], int]) -> Path:
    """Run the whole story; returns the report's path.

    Raises:
        HaganeError: a step failed; what was made so far stays.
    """
    if plan.run.exists():
        raise HaganeError(
            "there is a demo here already", where=str(plan.out), next_step="remove it, or use another --out"
        )
    t, begun = Teller(run_verb), monotonic()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    worlds = machines()
    found_site(plan.out)
    t.say("Three members of a consortium, three machines, one set of weights. Everything happens on this machine.")
    logs = write_all_logs(t, plan)
    t.say("Each member writes down its terms and signs them. Nothing can be read without.")
    with t.step("Members sign contracts", "hagane contract sign contracts/<member>.toml --key keys/<member>.pem"):
        sign_contracts(t, plan.out)
    refusal = refuse_abroad(t, plan, logs["road"], worlds["road"])
    bring_in(t, plan, logs, worlds)
    t.say("One model for all three: tokens for each machine, experts that belong to the members.")
    home = ["--home", str(plan.out)]
    t.verb("Train one generalist", ["train", "--run", str(plan.run), "--recipe", plan.recipe, *home])
    t.say("Closed loop, on seeds that neither data nor tuning ever saw, beside rows that are hard to beat.")
    for m in MEMBERS:
        trials = str(plan.count(EPISODES[m.world]))
        args = ["evaluate", str(plan.run), "--world", m.world, "--trials", trials, "--out", str(plan.run)]
        t.verb(f"Evaluate on the {m.world}", [*args, "--every", "2" if m.world != "road" else "1"])
    drives = serve_and_drive(t, plan, worlds)
    t.verb("Trace the weights to their owners", ["audit", "trace", str(plan.run), *home])
    told = trace_actions(t, plan)
    page = ["--officer", "--html", str(plan.run / "officer.html"), "--site-key", str(plan.out / "keys" / "host.pub")]
    t.verb("Make the officer's page", ["audit", "report", *page, *home])
    story = Story(
        title="hagane demo: one generalist, three machines",
        machine=computer(),
        started=started,
        seconds=monotonic() - begun,
        steps=tuple(t.steps),
        intake=came_in(plan),
        refusals=(refusal,),
        lineage=lineage(plan, told),
        drives=drives,
    )
    (plan.run / "story.json").write_text(json.dumps(dataclasses.asdict(story), indent=1, ensure_ascii=False), "utf-8")
    t.verb("Make the report", ["console", "report", str(plan.run)])
    ending(t, plan, monotonic() - begun)
    return plan.run / "report.html"


def machines() -> dict[str, Path]:
    """Embodiment files of the three machines."""
    import hagane.worlds

    folder = Path(hagane.worlds.__file__).parent
    return {m.world: folder / f"{m.world}.toml" for m in MEMBERS}


def write_all_logs(t: Teller, plan: Plan) -> dict[str, Path]:
    """The members' machines run side by side, each in a process of its own."""
    logs: dict[str, Path] = {}
    with (
        t.step("Members' machines run and write logs", f"hagane demo --logs arm --out {plan.out}"),
        ProcessPoolExecutor(2, get_context("spawn")) as pool,
    ):
        jobs = {
            pool.submit(write_logs, m.world, plan.out / "logs" / m.world, plan.count(m.episodes)): m
            for m in sorted(MEMBERS, key=lambda m: m.world != "road")
        }
        print(f"{len(jobs)} machines at work ...")
        for job in as_completed(jobs):
            m = jobs[job]
            logs[m.world] = job.result()
            print(f"{m.name}: {plan.count(m.episodes)} runs of the {m.world} as {m.format}, {logs[m.world]}")
    return logs


def refuse_abroad(t: Teller, plan: Plan, log: Path, embodiment: Path) -> Refusal:
    """A contract that keeps its data in another country is refused, on screen, with its reason."""
    path = sign_abroad(t, plan.out)
    t.say("member-cars also has data that must stay in Germany. This site is in Japan.")
    args = ["intake", str(log), "--embodiment", str(embodiment), "--contract", str(path), "--name", ABROAD]
    said = t.verb("Data that may not be read here is refused", [*args, *stores(plan)], refused=True)
    reason = next((line.partition(": ")[2] for line in said.splitlines() if line.startswith("hagane intake:")), said)
    return Refusal(f"intake of {ABROAD}", "member-cars", reason)


def bring_in(t: Teller, plan: Plan, logs: dict[str, Path], worlds: dict[str, Path]) -> None:
    """Intake of each member's logs under its contract."""
    for m in MEMBERS:
        args = ["intake", str(logs[m.world]), "--embodiment", str(worlds[m.world]), "--name", m.dataset]
        terms = ["--contract", str(contract(plan.out, m)), *stores(plan)]
        t.verb(f"{m.name} brings its {m.format} logs in", [*args, *terms])
    t.verb("What this site holds now", ["catalog", "ls", "--home", str(plan.out)])


def stores(plan: Plan) -> list[str]:
    """Flags of intake that name the site."""
    return ["--home", str(plan.out)]


def serve_and_drive(t: Teller, plan: Plan, worlds: dict[str, Path]) -> tuple[Drive, ...]:
    """Serve the checkpoint, drive each world against it through the guard, and bring the recordings back."""
    drives = []
    t.say("The weights answer over the openpi wire; every action passes the guard before it reaches a machine.")
    with served(t, plan.run, plan.out) as url:
        for m in MEMBERS:
            kept, told = plan.out / "drives" / m.world, plan.run / "drives" / f"{m.world}.json"
            args = ["drive", m.world, "--at", url, "--episodes", "2", "--record", str(kept), "--json", str(told)]
            args += stores(plan)
            t.verb(f"Drive the {m.world} through the guard", args)
            back = ["intake", str(kept), "--embodiment", str(worlds[m.world]), "--dry-run"]
            t.verb(f"The {m.world}'s recordings come back through intake", back)
            rows = json.loads(told.read_text("utf-8"))
            drives.append(
                Drive(
                    embodiment=m.world,
                    score=sum(r["score"] for r in rows) / len(rows),
                    interventions=sum(sum(r["interventions"].values()) for r in rows),
                    latency_ms_p50=max(r["latency_ms_p50"] for r in rows),
                    latency_ms_p99=max(r["latency_ms_p99"] for r in rows),
                    recording=str(kept.relative_to(plan.out)),
                    came_back=len(list(kept.glob("*.mcap"))),
                )
            )
    return tuple(drives)


def came_in(plan: Plan) -> tuple[Intake, ...]:
    """What the catalog holds, with the first findings of each set."""
    catalog = catalog_of(plan)
    out = []
    for m in MEMBERS:
        record = catalog.record(m.dataset)
        found = [str(f) for e in catalog.episodes(m.dataset, "anchor") for f in e.findings]
        shown = found[:5] + ([f"... and {len(found) - 5} more, kept with the data"] if len(found) > 5 else [])
        out.append(Intake(m.dataset, m.name, m.format, record.episodes, tuple(shown)))
    return tuple(out)


def catalog_of(plan: Plan) -> Catalog:
    """The demo site's catalog; looks at it are not written to the ledger."""
    trust = TrustStore(plan.out / "trust")
    return Catalog.open(plan.out / "catalog", load_site(plan.out / "site.toml", root_key(trust)), trust)


def trace_actions(t: Teller, plan: Plan) -> Path:
    """Every action of every recording is traced; returns the file about one in the middle of the arm's first drive.

    Raises:
        HaganeError: one of them is not.
    """
    home, told = ["--home", str(plan.out)], plan.run / "trace.json"
    recordings = sorted((plan.out / "drives").glob("*/*.mcap"))
    with t.step("Trace every action to its data", f"hagane audit trace RECORDING --home {plan.out}"):
        for path in recordings:
            with t.quiet():
                t.must("audit", "trace", str(path), *home, "--json", str(told))
            facts = json.loads(told.read_text("utf-8"))
            print(
                f"{path.name}: {facts['traced']} of {facts['actions']} actions, {len(facts['proofs'])} entries proved"
            )
    first = next(p for p in recordings if p.parent.name == "arm")
    at = f"{first}@1"
    t.verb("Trace one action back to the owners", ["audit", "trace", at, *home, "--json", str(told)])
    return told


def lineage(plan: Plan, told: Path) -> Lineage:
    """From an action that a machine carried out to the contracts behind it, as `hagane audit trace` told it."""
    facts = json.loads(told.read_text("utf-8"))
    action: dict[str, str | float | int | bool | list[float] | None] = {
        "machine": facts["machine"],
        "recording": facts["recording"],
        "time_s": round(facts["time_s"], 3),
    }
    for name, values in facts["values"].items():
        if not name.endswith(APPLIED):
            action[name] = [round(v, 4) for v in values if v is not None]
    catalog, (run, names) = catalog_of(plan), next(iter(facts["runs"].items()))
    sets = tuple(Source(r.name, r.owner, r.digest, r.contract_digest) for r in map(catalog.record, names))
    return Lineage(action, facts["checkpoint"], run, sets, LedgerHead(**facts["head"]))


def computer() -> dict[str, str | float | int | bool | None]:
    """This machine, in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory": f"{memory:.0f} GiB",
        "system": platform.system(),
        "python": platform.python_version(),
    }


def ending(t: Teller, plan: Plan, seconds: float) -> None:
    """The three figures, where the page is, and what to try next."""
    from hagane.evaluate import best_classical, by_who, load_card

    t.say(f"Done in {seconds / 60:.1f} minutes.")
    for m in MEMBERS:
        card = load_card(plan.run / "scorecards" / f"{m.world}.json")
        whole = by_who(card)
        ours, rival, expert = whole["ours"], whole[best_classical(card).who], whole["expert"]
        interval = f"[{ours.low:.3f}, {ours.high:.3f}]"
        print(
            f"  {m.world:<5} ours {ours.score:.3f} {interval}  {rival.who} {rival.score:.3f}  expert {expert.score:.3f}"
        )
        print(f"        {card.measure}")
    t.say(
        f"Open {plan.run / 'report.html'}\n\nNext:\n"
        f"  hagane train --again {plan.run} --run {plan.out}/runs/again --home {plan.out} --seed 1\n"
        f"  hagane contract check {plan.out}/contracts/member-cars.toml --site {plan.out}/site.toml"
        f" --trust {plan.out}/trust --purpose export\n"
        f"  hagane plan size 1t"
    )


def quick(plan: Plan) -> Plan:
    """The small version: a few minutes, everything runs, nothing is skilled."""
    return replace(plan, recipe="tiny", share=0.03)
