"""Right to use: keys, signed contracts, `permit`, sites, and the ledger of what was decided and done."""

from hagane.seal.contracts import (
    SignedContract,
    is_digest,
    load_contract,
    read_contract,
    sign_contract,
    verify_contract,
)
from hagane.seal.countries import COUNTRIES, is_country
from hagane.seal.entry import Entry, Signer
from hagane.seal.keys import TrustStore, generate_key, key_id_of, load_private, public_of, public_pem, read_public
from hagane.seal.ledger import Ledger
from hagane.seal.memory import NEVER, Last, Memory, ledger_day, request_at, utc_today
from hagane.seal.merkle import Head, Proof, check_growth, check_proof
from hagane.seal.names import ROOT, check_name, is_name
from hagane.seal.permit import permit
from hagane.seal.signed_file import check_payload, check_signer, signature_path, write_signature
from hagane.seal.site import Site, load_site, read_site, root_key, sign_site

__all__ = [
    "COUNTRIES",
    "NEVER",
    "ROOT",
    "Entry",
    "Head",
    "Last",
    "Ledger",
    "Memory",
    "Proof",
    "SignedContract",
    "Signer",
    "Site",
    "TrustStore",
    "check_growth",
    "check_name",
    "check_payload",
    "check_proof",
    "check_signer",
    "generate_key",
    "is_country",
    "is_digest",
    "is_name",
    "key_id_of",
    "ledger_day",
    "load_contract",
    "load_private",
    "load_site",
    "permit",
    "public_of",
    "public_pem",
    "read_contract",
    "read_public",
    "read_site",
    "request_at",
    "root_key",
    "sign_contract",
    "sign_site",
    "signature_path",
    "utc_today",
    "verify_contract",
    "write_signature",
]
