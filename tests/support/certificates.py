"""A certificate authority for tests, a server's certificate by it, and an authority that did not sign anything."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import trustme


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files; the certificate is for 127.0.0.1 and localhost, unless other hosts are named."""

    key: Path
    certificate: Path
    authority: Path
    stranger: Path

    @classmethod
    def issue(cls, folder: Path, *hosts: str) -> Self:
        """Write them into ``folder``."""
        issued = cls(folder / "server.key", folder / "server.pem", folder / "ca.pem", folder / "other-ca.pem")
        authority = trustme.CA()
        server = authority.issue_cert(*(hosts or ("127.0.0.1", "localhost")))
        server.private_key_pem.write_to_path(str(issued.key))
        for blob in server.cert_chain_pems:
            blob.write_to_path(str(issued.certificate), append=True)
        authority.cert_pem.write_to_path(str(issued.authority))
        trustme.CA().cert_pem.write_to_path(str(issued.stranger))
        return issued
