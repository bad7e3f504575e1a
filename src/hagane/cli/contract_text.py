"""A contract and a site's record as people read them: TOML with a comment on every line, and terms on a terminal."""

from __future__ import annotations

import json

from hagane.seal import Site
from hagane.terms import PURPOSES, Contract


def contract_text(contract: Contract) -> str:
    """A contract as TOML with a comment on every line."""
    return f"""\
# A contract: what the owner of data grants. What is not written here is not granted.
# Edit, then sign: hagane contract sign FILE --key KEY.pem. After signing, a changed letter makes it void.

owner = "{contract.owner}"             # the member that owns the data and signs this
datasets = {_list(contract.datasets)}  # names of the data sets
residency = {_list(contract.residency)}  # countries where the data may be read (ISO 3166-1 alpha-2)
sites = {_list(contract.sites)}        # sites where it may be read
# purposes: {", ".join(PURPOSES)}
# "anchor" trains the weights that all members share; "member-training" only the owner's own experts
purposes = {_list(contract.purposes)}
issued = {contract.issued}             # first day (UTC)
until = {contract.until}               # last day (UTC)
serial = {contract.serial}             # count up with every new contract about the same data: sites refuse older ones
# what withdrawing means: "E" exact (the data stays in the member's own bundle, so no "anchor", "statistics", "router"),
# "R" the router is tuned again without the member, "D" the weights are revoked and trained again
withdrawal = "{contract.withdrawal}"
# "jail": sealed on disk, opened only in a jail on a site that the consortium's root signed;
# "process": plain files, and our own code asks before it reads them
protection = "{contract.protection}"
may_merge = {_list(contract.may_merge)}  # members whose sites may merge what was trained on it; [] is nobody
may_serve = {_list(contract.may_serve)}  # members whose sites may serve what was trained on it; [] is nobody
version = {contract.version}           # of this form

[digests]  # data set = "sha256 of its content": only that content. `hagane contract pin FILE` fills it in
{"".join(f'{name} = "{digest}"{chr(10)}' for name, digest in contract.digests.items())}"""


def site_text(site: Site) -> str:
    """A site's record as TOML with a comment on every line."""
    until = f"until = {site.until}" if site.until else "# until = 2027-12-31"
    return f"""\
# A site: where data is read. The operator writes it; the consortium's root signs it.

name = "{site.name}"              # as contracts list it
country = "{site.country}"        # where its machines stand (ISO 3166-1 alpha-2)
operator = "{site.operator}"      # the member, or the consortium, that runs it
host_key = "{site.host_key}"      # id of the public key that it signs its statements with
{until}                           # last day that the root's signature counts (UTC)
fabric = {json.dumps(site.fabric)}          # on a cluster: how its network is cut off from others (pkey, VLAN)
"""


def print_terms(contract: Contract, digest: str) -> None:
    """Print a contract's terms, a line each."""
    print(f"contract of {contract.owner}, serial {contract.serial}, sha256 {digest[:16]}...")
    pinned = contract.digests
    named = (f"{d} (content {pinned[d][:16]}...)" if d in pinned else d for d in contract.datasets)
    print(f"  data sets   {', '.join(named)}")
    print(f"  purposes    {', '.join(contract.purposes)}")
    print(f"  countries   {', '.join(contract.residency)}")
    print(f"  sites       {', '.join(contract.sites)}")
    print(f"  days        {contract.issued} to {contract.until} (UTC)")
    print(f"  withdrawal  class {contract.withdrawal}")
    print(f"  protection  {contract.protection}")
    print(f"  may merge   {', '.join(contract.may_merge) or 'nobody'}")
    print(f"  may serve   {', '.join(contract.may_serve) or 'nobody'}")


def print_site(site: Site) -> None:
    """Print a site's record, a line each."""
    print(f"site {site.name}")
    print(f"  country     {site.country}")
    print(f"  operator    {site.operator}")
    print(f"  host key    {site.host_key[:16] + '...' if site.host_key else 'none'}")
    print(f"  fabric      {site.fabric or 'nothing said'}")


def _list(words: tuple[str, ...]) -> str:
    return "[" + ", ".join(f'"{w}"' for w in words) + "]"
