"""Right to use: keys, contracts, `permit`, sites, sealed data, and the ledger of what was decided and done."""

from hagane.seal.broker import Rules, Serving, serve
from hagane.seal.broker_client import Broker
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
from hagane.seal.folder import Keys, OwnKeys, SealedFolder, check_folder, open_folder, unseal_folder
from hagane.seal.folder_write import seal_folder
from hagane.seal.harden import Hardened, harden
from hagane.seal.key_life import Erased, Rotated, erase, out_of_reach, rotate
from hagane.seal.keyring import Keyring, Wrapped
from hagane.seal.keys import TrustStore, generate_key, key_id_of, load_private, public_of, public_pem, read_public
from hagane.seal.ledger import Ledger
from hagane.seal.memory import NEVER, Last, Memory, ledger_day, request_at, utc_today
from hagane.seal.merkle import Head, Proof, check_growth, check_proof
from hagane.seal.names import ROOT, check_name, is_name
from hagane.seal.permit import permit
from hagane.seal.sealed_file import SealedFile, open_sealed
from hagane.seal.shards import Layout, seal_bytes_to
from hagane.seal.signed_file import check_payload, check_signer, signature_path, write_signature
from hagane.seal.site import Site, load_site, read_site, root_key, sign_site

__all__ = [
    "COUNTRIES",
    "NEVER",
    "ROOT",
    "Broker",
    "Entry",
    "Erased",
    "Hardened",
    "Head",
    "Keyring",
    "Keys",
    "Last",
    "Layout",
    "Ledger",
    "Memory",
    "OwnKeys",
    "Proof",
    "Rotated",
    "Rules",
    "SealedFile",
    "SealedFolder",
    "Serving",
    "SignedContract",
    "Signer",
    "Site",
    "TrustStore",
    "Wrapped",
    "check_folder",
    "check_growth",
    "check_name",
    "check_payload",
    "check_proof",
    "check_signer",
    "erase",
    "generate_key",
    "harden",
    "is_country",
    "is_digest",
    "is_name",
    "key_id_of",
    "ledger_day",
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
    "read_public",
    "read_site",
    "request_at",
    "root_key",
    "rotate",
    "seal_bytes_to",
    "seal_folder",
    "serve",
    "sign_contract",
    "sign_site",
    "signature_path",
    "unseal_folder",
    "utc_today",
    "verify_contract",
    "write_signature",
]
