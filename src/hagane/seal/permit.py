"""permit: the one function that says who may use which data, where, what for and until when.

It is total (it never raises) and denies by default: every term must allow, or the answer is no, with the reason.
"""

from __future__ import annotations

import difflib
from datetime import date

from hagane.seal.contracts import SignedContract, read_contract
from hagane.terms import PURPOSES, Contract, ContractError, Decision, Request, digest_bytes


def permit(signed: SignedContract | None, request: Request) -> Decision:
    """Decide whether a signed contract allows a request.

    Args:
        signed: the contract as `load_contract` verified it; None when there is none.
        request: who asks for what; nothing in it has a default.

    Returns:
        The decision, with the reason in words; never raises.
    """
    try:
        reason = _refusal(signed, request)
    except Exception as e:
        # anything odd enough to break the comparison itself is refused as well
        return Decision(False, f"the request could not be judged ({type(e).__name__}), so it is refused")
    if reason:
        return Decision(False, reason)
    return Decision(
        True,
        f"the contract of {request.owner!r} grants {request.purpose!r} of {request.dataset!r} "
        f"at site {request.site!r} in {request.country}",
    )


def _refusal(signed: SignedContract | None, request: Request) -> str:
    """Why the request is refused; "" when every term allows it."""
    if signed is None:
        return "there is no signed contract for this data set"
    if not isinstance(signed, SignedContract) or not isinstance(request, Request):
        return "this is no signed contract and request, so nothing is granted"
    if not signed.signature or not signed.key_id:
        return "the contract is not signed by its owner"
    if digest_bytes(signed.toml) != signed.digest:
        return "the contract's text is not the text that was signed"
    try:
        # the terms are read again from the signed bytes: an object changed in memory grants nothing
        contract = read_contract(signed.toml)
    except ContractError as e:
        return f"the contract is not well formed: {e.what}"
    if contract != signed.contract:
        return "the contract's terms are not the ones that were signed"
    return _malformed(request) or _not_granted(contract, request)


def _malformed(request: Request) -> str:
    """What the request itself lacks; "" when every field is there and of its type."""
    for name in ("dataset", "owner", "purpose", "country", "site"):
        value = getattr(request, name)
        if type(value) is not str or not value:
            return f"the request does not say its {name}"
    if type(request.today) is not date:
        return "the request does not say its date"
    if request.purpose not in PURPOSES:
        near = difflib.get_close_matches(request.purpose, PURPOSES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{request.purpose!a} is not a purpose{hint} (purposes: {', '.join(PURPOSES)})"
    return ""


def _not_granted(contract: Contract, request: Request) -> str:
    """The first term that does not allow a well formed request; "" when all do."""
    if request.owner != contract.owner:
        return f"the data belongs to {request.owner!a}, but the contract is one of {contract.owner!r}"
    if request.dataset not in contract.datasets:
        return f"the contract is not about data set {request.dataset!a} (it names {_list(contract.datasets)})"
    if request.today > contract.until:
        return f"the contract of {contract.owner!r} expired on {contract.until.isoformat()}"
    if request.purpose not in contract.purposes:
        return f"purpose {request.purpose!r} is not granted (granted: {_list(contract.purposes)})"
    if request.purpose == "anchor" and contract.withdrawal == "E":
        return (
            "the owner may withdraw exactly (class E), so the data must stay out of the shared anchor, "
            "from which nothing can be removed"
        )
    if request.country not in contract.residency:
        return f"the data may not be read in {request.country!a} (allowed: {_list(contract.residency)})"
    if request.site not in contract.sites:
        return f"the data may not be read at site {request.site!a} (allowed: {_list(contract.sites)})"
    return ""


def _list(words: tuple[str, ...]) -> str:
    return ", ".join(words)
