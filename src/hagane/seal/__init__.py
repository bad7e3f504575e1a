"""Right to use: keys, contracts, `permit`, sites, sealed data, and the ledger of what was decided and done."""

from hagane.seal.broker import Rules, Serving, serve
from hagane.seal.broker_client import Broker
from hagane.seal.contracts import SignedContract, load_contract, read_contract, sign_contract, verify_contract
from hagane.seal.countries import COUNTRIES, is_country
from hagane.seal.folder import (
    Keys,
    OwnKeys,
    SealedFolder,
    check_folder,
    open_folder,
    seal_folder,
    unseal_folder,
)
from hagane.seal.harden import Hardened, harden
from hagane.seal.key_life import Erased, Rotated, erase, out_of_reach, rotate
from hagane.seal.keyring import Keyring, Wrapped
from hagane.seal.keys import TrustStore, generate_key, key_id_of, load_private, public_of, public_pem
from hagane.seal.ledger import Entry, Head, Ledger
from hagane.seal.merkle import Proof, check_proof
from hagane.seal.names import check_name, is_name
from hagane.seal.permit import permit
from hagane.seal.shards import Layout, SealedFile, open_sealed, seal_bytes_to
from hagane.seal.site import Site, load_site

__all__ = [
    "COUNTRIES",
    "Broker",
    "Entry",
    "Erased",
    "Hardened",
    "Head",
    "Keyring",
    "Keys",
    "Layout",
    "Ledger",
    "OwnKeys",
    "Proof",
    "Rotated",
    "Rules",
    "SealedFile",
    "SealedFolder",
    "Serving",
    "SignedContract",
    "Site",
    "TrustStore",
    "Wrapped",
    "check_folder",
    "check_name",
    "check_proof",
    "erase",
    "generate_key",
    "harden",
    "is_country",
    "is_name",
    "key_id_of",
    "load_contract",
    "load_private",
    "load_site",
    "open_folder",
    "open_sealed",
    "out_of_reach",
    "permit",
    "public_of",
    "public_pem",
    "read_contract",
    "rotate",
    "seal_bytes_to",
    "seal_folder",
    "serve",
    "sign_contract",
    "unseal_folder",
    "verify_contract",
]
