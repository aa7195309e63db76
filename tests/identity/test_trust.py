"""Bundles of roots: what a pin vouches for, and what a file says."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.identity import (
    BadCertificate,
    CertificateAuthority,
    TrustBundle,
    UntrustedBundle,
    pinned_untrusted,
)
from swarmlet.identity.trust import CERTIFICATES_MAX, from_pem_untrusted, to_pem
from tests.identity.makers import NOW, Cluster

CLUSTER = Cluster()
R1 = CLUSTER.authority
R2 = CertificateAuthority.create(CLUSTER.id, now=NOW)
R3 = CertificateAuthority.create(CLUSTER.id, now=NOW)
CROSS2 = R1.cross_sign(R2.certificate, now=NOW)
CROSS3 = R2.cross_sign(R3.certificate, now=NOW)
#: After two rotations: R3 is in use, R1 and R2 are retired, tokens that pin R1 still work.
LATE = TrustBundle(
    roots=(R3.certificate,),
    crosses=(CROSS2, CROSS3),
    retired=(R1.certificate, R2.certificate),
    version=7,
)


def test_pin_accepts_its_own_root() -> None:
    assert pinned_untrusted(CLUSTER.trust, R1.digest) == CLUSTER.trust


def test_pin_of_an_old_token_leads_over_crosses_to_the_present_root() -> None:
    assert pinned_untrusted(LATE, R1.digest) == LATE
    assert LATE.digests() == {R1.digest, R2.digest, R3.digest}


@pytest.mark.parametrize(
    "bundle",
    [
        TrustBundle(roots=(R2.certificate,)),  # another CA
        TrustBundle(roots=(R1.certificate, R2.certificate)),  # a stranger comes along
        TrustBundle(roots=(R1.certificate, R3.certificate), crosses=(CROSS3,)),  # no way to R2
        replace(LATE, crosses=(CROSS3,)),
        TrustBundle(roots=(), retired=(R1.certificate,)),
        TrustBundle(roots=(b"noise",)),
        TrustBundle(roots=(R1.certificate, b"noise")),
        TrustBundle(roots=(R1.certificate,), crosses=(b"noise",)),
        TrustBundle(roots=(R1.certificate,) * (CERTIFICATES_MAX + 1)),
    ],
)
def test_bundle_that_the_pin_does_not_vouch_for_is_refused(bundle: TrustBundle) -> None:
    with pytest.raises(UntrustedBundle):
        pinned_untrusted(bundle, R1.digest)


def test_cross_of_an_impostor_is_no_bridge() -> None:
    """Same names, other key: the signature decides."""
    impostor = CertificateAuthority.create(CLUSTER.id, now=NOW)
    forged = impostor.cross_sign(R2.certificate, now=NOW)
    bundle = TrustBundle(roots=(R1.certificate, R2.certificate), crosses=(forged,))
    with pytest.raises(UntrustedBundle, match="does not vouch"):
        pinned_untrusted(bundle, R1.digest)


def test_bundle_survives_its_file() -> None:
    for bundle in (CLUSTER.trust, LATE):
        assert from_pem_untrusted(to_pem(bundle)) == bundle


def test_retiring_keeps_the_way_back_and_a_compromise_does_not() -> None:
    both = CLUSTER.trust.with_root(R2.certificate, crosses=(CROSS2,))
    assert both.version == 2
    retired = both.without_root(R1.certificate, compromised=False)
    assert retired.roots == (R2.certificate,)
    assert retired.retired == (R1.certificate,)
    assert retired.crosses == (CROSS2,)
    burnt = both.without_root(R1.certificate, compromised=True)
    assert (burnt.roots, burnt.retired, burnt.crosses) == ((R2.certificate,), (), ())


@given(st.binary(max_size=300))
def test_noise_is_no_bundle(noise: bytes) -> None:
    with pytest.raises(BadCertificate):
        from_pem_untrusted(noise)


@given(st.integers(0, 4000), st.binary(min_size=1, max_size=8))
def test_changed_file_raises_only_bad_certificate(at: int, noise: bytes) -> None:
    text = to_pem(LATE)
    with suppress(BadCertificate):
        from_pem_untrusted(text[:at] + noise + text[at + len(noise) :])
