"""Kernel alignment."""

from loss_variant import HIDDEN, PAIRS, Variant

from hfdistill.losses.feature.kernel_alignment import KernelAlignmentLoss

VARIANTS = {
    "kernel alignment, tokens": Variant(lambda: KernelAlignmentLoss(PAIRS), HIDDEN, additive=False),
    "kernel alignment, uncentred": Variant(lambda: KernelAlignmentLoss(PAIRS, centre=False), HIDDEN, additive=False),
    "kernel alignment, debiased": Variant(lambda: KernelAlignmentLoss(PAIRS, debiased=True), HIDDEN, additive=False),
    "kernel alignment, rows": Variant(
        lambda: KernelAlignmentLoss(PAIRS, samples="rows"), HIDDEN, additive=False, single_row=False
    ),
}
