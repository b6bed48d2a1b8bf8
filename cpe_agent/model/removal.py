"""Does this document take away too much at once?

In: a site's next document and the one that it obeys. Out: nothing, or the `DocumentError` with which the site refuses
it. The controller asks the same before it hands one out.
"""

from __future__ import annotations

from cpe_agent.model.document import Document, DocumentError

# More than half of the pairs at once is a mistake on the controller until somebody says otherwise.
MASS_REMOVAL_SHARE = 0.5


def refuse_mass_removal(document: Document, current: Document) -> None:
    if current.peers and not document.peers:
        raise DocumentError("peers", "are all removed; set allow_mass_removal if that is meant")
    kept = {pair.id for pair in document.pairs}
    removed = sum(1 for pair in current.pairs if pair.id not in kept)
    if removed > MASS_REMOVAL_SHARE * len(current.pairs) and removed > 1:
        reason = f"{removed} of {len(current.pairs)} are removed; set allow_mass_removal if that is meant"
        raise DocumentError("pairs", reason)
