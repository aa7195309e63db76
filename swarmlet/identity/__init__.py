"""Who a node is, who trusts it, and what it may do.

The problem: boxes that nobody configures, on networks that nobody guards, whose addresses change
and whose clocks begin in 1970, must know each other for certain. So a node is its key pair, the
cluster is the key pair that signs nodes, and an address is only a hint.

The life of a node:

1. `swarmlet init` makes a CertificateAuthority and issues the first node's certificate.
2. A manager prints a join token: the digest of the root, and a secret that carries a role.
3. The joiner makes a key (vault.pending_key; its id follows from it, so a retry is the same node),
   asks any manager for its TrustBundle, believes it only if the digest fits
   (trust.pinned_untrusted), then sends a certificate request and the token over TLS that this
   bundle verifies.
4. The leader verifies the token, writes the node into the store and signs.
5. From then on every stream begins with admit() on one side and accept() on the other. Nothing
   else looks at a certificate.
6. Between half and four fifths of the certificate's life the node renews, with a new key in a
   second slot, which becomes the current one after it worked once.
7. `swarmlet node rm` takes the node out of the store. That is the revocation: no list of
   certificates is needed, for the store is asked each time.

What holds:

- Effective role = the lesser of certificate and store: a demotion works at once.
- TLS checks chains and never the clock; admit() decides about time, and the worst that a wrong
  clock can do is to leave a node with the right to renew.
- A crash at any moment leaves an identity with which the node is let in.
- What verifies raises (Refused, InvalidToken, UntrustedBundle, BadSeal): no bool to forget.
- Private keys, secrets and tokens are in no repr and so in no log.
- Bytes from outside go through functions that end in _untrusted and raise what they say they do.

Where we differ: Docker's swarm has one token a role, for ever; tokens here may also be issued,
with an end, a number of uses and labels. Its CA rotation waits for nodes that are offline; here
they find their way back over a cross certificate. Its nodes that were off past the end of their
certificate need a new join; here they renew.

Left out: revocation lists and OCSP (the store is asked), session resumption (it would outlive a
removal), key kinds other than P-256 for our own keys (Ed25519 is accepted from others).

The modules: keys, certificates, authority, trust, admission, gate, tokens (what is said and
decided); credentials (TLS contexts), sealing and keyring (data at rest, epoch keys), vault (the
files), rotation (of the root), messages (of sl-ca/1).
"""

from swarmlet.identity.admission import (
    Admitted,
    KnownNode,
    Reason,
    Refused,
    Rights,
    accept,
    admit,
    admit_unlisted,
    ended,
    keys_after_renewal,
)
from swarmlet.identity.authority import CertificateAuthority, new_cluster_id
from swarmlet.identity.certificates import BadCertificate, NodeCertificate, Role, lesser
from swarmlet.identity.credentials import Credentials, joining_context
from swarmlet.identity.gate import CertificateGate, ClusterClock, StoreGate
from swarmlet.identity.keyring import EpochKey, Keyring, first_keyring
from swarmlet.identity.keys import BadKey, BadRequest, KeyPair, check_request_untrusted, node_id_of
from swarmlet.identity.messages import (
    Issued,
    JoinFacts,
    JoinFault,
    JoinPending,
    JoinRefused,
    JoinRequest,
    RenewRequest,
    TrustAnswer,
    TrustRequest,
)
from swarmlet.identity.sealing import (
    BadSeal,
    Locked,
    MistypedKey,
    derive_key,
    format_unlock_key,
    new_key,
    open_untrusted,
    parse_unlock_key,
    seal,
)
from swarmlet.identity.tokens import (
    Grant,
    InvalidToken,
    MistypedToken,
    Token,
    TokenFault,
    new_issued_token,
    parse_token,
    secret_digest,
    standing_token,
    verify_token,
)
from swarmlet.identity.trust import TrustBundle, UntrustedBundle, pinned_untrusted
from swarmlet.identity.vault import DamagedIdentity, Vault

__all__ = [
    "Admitted",
    "BadCertificate",
    "BadKey",
    "BadRequest",
    "BadSeal",
    "CertificateAuthority",
    "CertificateGate",
    "ClusterClock",
    "Credentials",
    "DamagedIdentity",
    "EpochKey",
    "Grant",
    "InvalidToken",
    "Issued",
    "JoinFacts",
    "JoinFault",
    "JoinPending",
    "JoinRefused",
    "JoinRequest",
    "KeyPair",
    "Keyring",
    "KnownNode",
    "Locked",
    "MistypedKey",
    "MistypedToken",
    "NodeCertificate",
    "Reason",
    "Refused",
    "RenewRequest",
    "Rights",
    "Role",
    "StoreGate",
    "Token",
    "TokenFault",
    "TrustAnswer",
    "TrustBundle",
    "TrustRequest",
    "UntrustedBundle",
    "Vault",
    "accept",
    "admit",
    "admit_unlisted",
    "check_request_untrusted",
    "derive_key",
    "ended",
    "first_keyring",
    "format_unlock_key",
    "joining_context",
    "keys_after_renewal",
    "lesser",
    "new_cluster_id",
    "new_issued_token",
    "new_key",
    "node_id_of",
    "open_untrusted",
    "parse_token",
    "parse_unlock_key",
    "pinned_untrusted",
    "seal",
    "secret_digest",
    "standing_token",
    "verify_token",
]
