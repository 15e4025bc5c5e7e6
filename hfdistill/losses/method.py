"""Where a loss comes from, and what shows that it computes the right number: the facts behind docs/methods.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A publication.

    Args:
        authors: as in a citation, "Park et al.".
        year: of publication.
        title: in full.
        link: where to read it.
    """

    authors: str
    year: int
    title: str
    link: str


@dataclass(frozen=True)
class Method:
    """The facts of one loss that its code cannot show.

    Args:
        papers: where it was published, the one that defines it first; none for what no paper claims (the labels).
        evidence: ids of golden cases that its formula was held to, or, where there is none, what else shows it.
        restrictions: what it cannot do, a phrase each ("at least 3 rows in a batch").
        unverified: what of it could not be checked against a paper or its authors' code ("formula reconstructed from
            the abstract"); "" where nothing is.
    """

    papers: tuple[Paper, ...] = ()
    evidence: tuple[str, ...] = ()
    restrictions: tuple[str, ...] = ()
    unverified: str = ""
