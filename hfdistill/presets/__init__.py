"""Published methods by name: each preset is a function that builds a fresh Objective with the paper's defaults.

What is from the paper and what is not stands in each docstring; "code" is the authors' published code where it
differs. A preset fits one training run. Where a paper trains in phases, a schedule switches the losses at a share of
the run; use two runs (and a fresh optimizer) to have the paper's phases exactly.
"""

from __future__ import annotations

from collections.abc import Callable

from hfdistill.keywords import check_keywords, nearest
from hfdistill.objective import Objective
from hfdistill.presets.activation import at, cwd, fitnets, fsp, kpn, nst, structured, vid
from hfdistill.presets.classes import dist, dkd, eskd, logit_regression, lskd
from hfdistill.presets.contrastive import crcd, crd, infonce
from hfdistill.presets.divergences import distillm, gkd, reverse_kl, top_k, uld
from hfdistill.presets.language_models import distilbert, lrc_bert, minilm, pkd, pkd_last, tinybert
from hfdistill.presets.learned_transfer import l2t_ww
from hfdistill.presets.matching import afd, afds, mgd, reviewkd, tofd
from hfdistill.presets.relation import cc, cskd, irg, lcc, pkt, rkd, sp, stepwise_rkd
from hfdistill.presets.response import kd
from hfdistill.presets.stages import sskd
from hfdistill.presets.supervision import conditional_ts, dtd, ka, lw_kd, pad, triplet, unix
from hfdistill.presets.transfer import cka, ckd, dynabert_depth, dynabert_width, mobilebert
from hfdistill.presets.vision import deit, deit_soft, funmatch

PRESETS: dict[str, Callable[..., Objective]] = {
    function.__name__: function
    for function in (
        kd,
        logit_regression,
        eskd,
        dkd,
        dist,
        lskd,
        deit,
        deit_soft,
        funmatch,
        reverse_kl,
        gkd,
        distillm,
        uld,
        top_k,
        conditional_ts,
        ka,
        dtd,
        pad,
        lw_kd,
        triplet,
        unix,
        distilbert,
        pkd,
        pkd_last,
        tinybert,
        lrc_bert,
        minilm,
        fitnets,
        at,
        fsp,
        nst,
        vid,
        kpn,
        cwd,
        structured,
        reviewkd,
        afd,
        afds,
        mgd,
        tofd,
        l2t_ww,
        cka,
        ckd,
        mobilebert,
        dynabert_width,
        dynabert_depth,
        sskd,
        rkd,
        stepwise_rkd,
        sp,
        pkt,
        cc,
        irg,
        lcc,
        cskd,
        crd,
        crcd,
        infonce,
    )
}
"""Name -> function that builds the objective."""


def preset_names() -> list[str]:
    """The names that `preset` and `objective="..."` accept."""
    return list(PRESETS)


def preset(name: str, **options: object) -> Objective:
    """A fresh Objective of a published method.

    Args:
        name: see `preset_names`.
        options: the preset's own keywords.

    Raises:
        ValueError: an unknown name or keyword; the message lists the accepted ones, nearest first.
        TypeError: a value of another type than the preset takes.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}. Accepted, nearest first: {', '.join(nearest(name, PRESETS))}.")
    check_keywords(f"preset {name!r}", PRESETS[name], options)
    objective = PRESETS[name](**options)
    objective.preset = name
    return objective
