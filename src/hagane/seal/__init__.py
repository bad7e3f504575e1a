"""Right to use: keys, signed contracts, `permit`, sites, and the ledger of what was decided and done."""

from hagane.seal.contracts import SignedContract, load_contract, read_contract, sign_contract, verify_contract
from hagane.seal.countries import COUNTRIES, is_country
from hagane.seal.entry import Entry, Signer
from hagane.seal.keys import TrustStore, generate_key, key_id_of, load_private, public_of, public_pem
from hagane.seal.ledger import Ledger
from hagane.seal.merkle import Head, Proof, check_growth, check_proof
from hagane.seal.names import check_name, is_name
from hagane.seal.permit import permit
from hagane.seal.site import Site, load_site

__all__ = [
    "COUNTRIES",
    "Entry",
    "Head",
    "Ledger",
    "Proof",
    "SignedContract",
    "Signer",
    "Site",
    "TrustStore",
    "check_growth",
    "check_name",
    "check_proof",
    "generate_key",
    "is_country",
    "is_name",
    "key_id_of",
    "load_contract",
    "load_private",
    "load_site",
    "permit",
    "public_of",
    "public_pem",
    "read_contract",
    "sign_contract",
    "verify_contract",
]
