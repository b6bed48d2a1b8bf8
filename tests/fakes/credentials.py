"""A `CredentialsPort` in memory. What a restarted agent would find: hand the same one to the next agent."""

from __future__ import annotations

from cpe_agent.ports import EdgeError


class FakeCredentials:
    """Keys are numbered: `key` is the one in use (0: none), `asking` the one that a certificate is asked for."""

    def __init__(self) -> None:
        self.key = 0
        self.asking: int | None = None
        self.chain = ""
        self.cas = ""

    @property
    def present(self) -> bool:
        return self.key > 0

    def next_csr(self) -> str:
        if self.asking is None:
            self.asking = self.key + 1
        return f"csr of key {self.asking}"

    def replace(self, chain_pem: str, cas_pem: str) -> None:
        if self.asking is None or f"csr of key {self.asking}" not in chain_pem:
            raise EdgeError("controller", "certificate", "the certificate that came is for another key")
        self.key, self.asking, self.chain, self.cas = self.asking, None, chain_pem, cas_pem
