"""permit: the one function that says who may use which data, where, what for and until when.

It is total (it never raises) and denies by default: every term must allow, or the answer is no, with the reason.
"""

from __future__ import annotations

import difflib
from datetime import date

from hagane.seal.contracts import SignedContract, read_contract
from hagane.terms import NOT_REMOVABLE, PURPOSES, Contract, ContractError, Decision, Request, digest_bytes

_KINDS = {
    "digest": str, "site_signed": bool, "jailed": bool, "today": date,
    "last_day": date, "last_serial": int, "last_contract": str,
}  # fmt: skip
"""Fields of a request that may be empty or false, and what they must be: exactly that type, so True is no number."""


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
    return (
        _malformed(request)
        or _other_data(contract, request)
        or _out_of_time(contract, signed.digest, request)
        or _not_granted(contract, request)
        or _wrong_place(contract, request)
    )


def _malformed(request: Request) -> str:
    """What the request itself lacks; "" when every field is there and of its type."""
    for name in ("dataset", "owner", "purpose", "country", "site", "operator"):
        value = getattr(request, name)
        if type(value) is not str or not value:
            return f"the request does not say its {name}"
    for name, kind in _KINDS.items():
        if type(getattr(request, name)) is not kind:
            return f"the request does not say its {name}"
    if request.purpose not in PURPOSES:
        near = difflib.get_close_matches(request.purpose, PURPOSES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{request.purpose!a} is not a purpose{hint} (purposes: {', '.join(PURPOSES)})"
    return ""


def _other_data(contract: Contract, request: Request) -> str:
    """Why the contract is not about this data; "" when it is."""
    if request.owner != contract.owner:
        return f"the data belongs to {request.owner!a}, but the contract is one of {contract.owner!r}"
    if request.dataset not in contract.datasets:
        return f"the contract is not about data set {request.dataset!a} (it names {_list(contract.datasets)})"
    pinned = contract.digests.get(request.dataset)
    if pinned is not None and request.digest != pinned:
        return (
            f"the contract is about data set {request.dataset!r} with content {pinned[:16]}..., "
            f"and this content is {ascii(request.digest[:16])[1:-1] or 'not known'}"
        )
    return ""


def _out_of_time(contract: Contract, digest: str, request: Request) -> str:
    """Why the contract does not hold now; "" when it does."""
    if request.today < request.last_day:
        return f"the clock was set back: it says {request.today}, and this site has seen {request.last_day}"
    if request.today < contract.issued:
        return f"the contract is from the future: issued on {contract.issued}, and today is {request.today} (UTC)"
    if request.today > contract.until:
        return f"the contract of {contract.owner!r} expired on {contract.until}"
    if contract.serial < request.last_serial:
        return (
            f"the contract (serial {contract.serial}) was replaced: "
            f"this site has seen serial {request.last_serial} of {contract.owner!r} about this data set"
        )
    if contract.serial == request.last_serial and digest != request.last_contract:
        return (
            f"this site has seen another contract of {contract.owner!r} with serial {contract.serial}; "
            "the newer one needs a higher serial"
        )
    return ""


def _not_granted(contract: Contract, request: Request) -> str:
    """Why the purpose is not granted; "" when it is."""
    if request.purpose not in contract.purposes:
        return f"purpose {request.purpose!r} is not granted (granted: {_list(contract.purposes)})"
    if request.purpose in NOT_REMOVABLE and contract.withdrawal == "E":
        return (
            "the owner may withdraw exactly (class E), so the data must stay out of what all owners share "
            f"({_list(NOT_REMOVABLE)}), from which nothing can be removed"
        )
    if request.purpose == "merge" and request.operator not in contract.may_merge:
        return f"{request.operator!a} may not merge what was trained on it (may: {_list(contract.may_merge)})"
    if request.purpose == "serve" and request.operator not in contract.may_serve:
        return f"{request.operator!a} may not serve what was trained on it (may: {_list(contract.may_serve)})"
    return ""


def _wrong_place(contract: Contract, request: Request) -> str:
    """Why the data may not be read at that place and in that way; "" when it may."""
    if request.country not in contract.residency:
        return f"the data may not be read in {request.country!a} (allowed: {_list(contract.residency)})"
    if request.site not in contract.sites:
        return f"the data may not be read at site {request.site!a} (allowed: {_list(contract.sites)})"
    if contract.protection != "process":
        if not request.site_signed:
            return (
                "the contract asks for a jail at a site that the consortium vouches for, and the record of site "
                f"{request.site!r} is not signed by the consortium's root, or ran out"
            )
        if not request.jailed:
            return "the contract asks for a jail, and this process is not in one"
    return ""


def _list(words: tuple[str, ...]) -> str:
    return ", ".join(words) or "nobody"
