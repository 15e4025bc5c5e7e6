"""Publications that losses of several files are from."""

from hfdistill.losses.method import Paper

TINYBERT = Paper(
    "Jiao et al.",
    2020,
    "TinyBERT: Distilling BERT for Natural Language Understanding",
    "https://arxiv.org/abs/1909.10351",
)
MOBILEBERT = Paper(
    "Sun et al.",
    2020,
    "MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices",
    "https://arxiv.org/abs/2004.02984",
)
STRUCTURED = Paper(
    "Liu et al.",
    2019,
    "Structured Knowledge Distillation for Semantic Segmentation",
    "https://arxiv.org/abs/1903.04197",
)
