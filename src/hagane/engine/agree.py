"""Agreement before the first step: every rank states the same facts, or every rank refuses and names what differs.

The facts travel over the store where the ranks meet, as JSON: before there is a process group (ranks of unlike device
kinds cannot form one), and never pickled.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta

from torch.distributed import DistError
from torch.distributed.distributed_c10d import Store

from hagane.terms import TrainingError

SHOWN = 4
"""Differing facts that a message spells out."""


def agree(store: Store, rank: int, ranks: int, what: str, facts: Mapping[str, str], *, wait_s: float = 300.0) -> None:
    """Return when all ranks stated the same facts. Rank 0 compares, so that a rank reads one answer, not all facts.

    Args:
        store: where the ranks meet.
        rank: this process's.
        ranks: how many there are.
        what: name of this exchange; one name is used once in a store.
        facts: by name; values are compared as text.
        wait_s: seconds in which every rank must have come.

    Raises:
        TrainingError: some rank states other facts, or never came; the same message on every rank.
    """
    mine = dict(facts)
    try:
        store.set(f"{what}/{rank}", json.dumps(mine))
        if rank == 0:
            store.set(f"{what}/answer", json.dumps([_answer(store, ranks, what, wait_s), mine]))
        # rank 0 may itself have waited all of wait_s
        store.wait([f"{what}/answer"], timedelta(seconds=2 * wait_s + 10))
        refusal, agreed = json.loads(store.get(f"{what}/answer"))
    except DistError:
        raise TrainingError(
            f"no answer of rank 0 about {what}",
            where=f"rank {rank}",
            next_step="look at the output of rank 0: it did not start, or it ended",
        ) from None
    # a rank that counts other ranks than rank 0 does was not looked at by it
    refusal = refusal or differences({0: agreed, rank: mine})
    if refusal:
        raise TrainingError(
            refusal,
            next_step="no step was made: give every machine the same hagane, torch and files, then start again",
        )


def differences(said: Mapping[int, Mapping[str, str]]) -> str:
    """What some ranks state otherwise than most, in one sentence; empty when all agree."""
    names = sorted({name for facts in said.values() for name in facts})
    odd = [name for name in names if len({facts.get(name) for facts in said.values()}) > 1]
    if not odd:
        return ""
    values = {name: {rank: facts.get(name, "nothing") for rank, facts in said.items()} for name in odd[:SHOWN]}
    told = "; ".join(_told(name, by_rank) for name, by_rank in values.items())
    more = f"; and in {', '.join(odd[SHOWN:])}" if len(odd) > SHOWN else ""
    return f"the ranks differ in {told}{more}"


def _told(name: str, values: Mapping[int, str]) -> str:
    """One fact: the rarer values first, since those are the ranks to look at."""
    by_value = sorted(Counter(values.values()).items(), key=lambda item: (item[1], item[0]))
    groups = [f"{text} on {rank_list([r for r, v in values.items() if v == text])}" for text, _ in by_value]
    return f"{name} ({', '.join(groups)})"


def rank_list(ranks: Collection[int]) -> str:
    """Ranks as people write them: "rank 2", "ranks 0-1, 3"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"rank {text}" if len(ranks) == 1 else f"ranks {text}"


def _answer(store: Store, ranks: int, what: str, wait_s: float) -> str:
    """Rank 0's: wait for all, then compare those that came."""
    absent = _absent(store, [f"{what}/{rank}" for rank in range(ranks)], wait_s)
    came = [rank for rank in range(ranks) if rank not in absent]
    texts = store.multi_get([f"{what}/{rank}" for rank in came])
    differ = differences({rank: json.loads(text) for rank, text in zip(came, texts, strict=True)})
    if not absent:
        return differ
    return f"{rank_list(absent)} of {ranks} did not come in {wait_s:g} s" + (f", and {differ}" if differ else "")


def _absent(store: Store, keys: Sequence[str], wait_s: float) -> list[int]:
    """Indices of keys that nobody set in time."""
    try:
        store.wait(list(keys), timedelta(seconds=wait_s))
    except DistError:
        return [i for i, key in enumerate(keys) if not store.check([key])]
    return []
