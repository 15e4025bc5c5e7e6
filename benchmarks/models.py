"""What the benchmarks run: a BERT teacher and student with random weights, and rows of random tokens.

The speed of a model does not depend on what it knows. The models of one run share their first weights, so that every
row of a table does the same arithmetic on the same numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

CLASSES = 2
FIRST_WORD, VOCABULARY = 1000, 30522
PADDED = {"input_ids": 0, "attention_mask": 0}
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Size:
    """A model's size.

    Args:
        layers: how many.
        width: of the hidden states.
        heads: of the attention.
    """

    layers: int
    width: int
    heads: int = 12

    @classmethod
    def parse(cls, text: str) -> "Size":
        """A size as it stands on a command line: "12x768", or "2x32x2" with the number of heads.

        Raises:
            ValueError: it is not of that form.
        """
        parts = [int(part) for part in text.split("x") if part.isdigit()]
        if len(parts) not in (2, 3) or len(parts) != len(text.split("x")):
            raise ValueError(f"a size is LAYERSxWIDTH or LAYERSxWIDTHxHEADS, such as 12x768, got {text!r}.")
        return cls(*parts)

    def __str__(self) -> str:
        return f"{self.layers}x{self.width}" + ("" if self.heads == 12 else f"x{self.heads}")


def classifier(size: Size, attention: str = "sdpa", dropout: float = 0.1) -> BertForSequenceClassification:
    """A BERT classifier with random weights, the same for the same size.

    Args:
        size: of the model.
        attention: transformers' name of the implementation.
        dropout: of hidden states and attention, while it trains.
    """
    config = BertConfig(
        num_hidden_layers=size.layers,
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_attention_heads=size.heads,
        num_labels=CLASSES,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    return BertForSequenceClassification(config)


class Models:
    """The teacher in each form that a table asks for, made once, and a fresh student for each of its rows.

    Args:
        teacher: its size.
        student: its size.
        device: where they run.
        dropout: of both while they train.
    """

    def __init__(self, teacher: Size, student: Size, device: torch.device, dropout: float = 0.1) -> None:
        self.sizes = (student, teacher)
        self.device = device
        self.dropout = dropout

    @cached_property
    def teacher(self) -> BertForSequenceClassification:
        """In float32, under SDPA."""
        return classifier(self.sizes[1], dropout=self.dropout).to(self.device).eval().requires_grad_(False)

    @cached_property
    def eager_teacher(self) -> BertForSequenceClassification:
        """The same parameters under eager attention, which alone shows its maps."""
        model = classifier(self.sizes[1], "eager", self.dropout)
        model.load_state_dict(self.teacher.state_dict(), assign=True)  # the tensors themselves: no second copy
        return model.to(self.device).eval().requires_grad_(False)

    @cached_property
    def half_teacher(self) -> BertForSequenceClassification:
        """A copy in bfloat16."""
        model = classifier(self.sizes[1], dropout=self.dropout).to(self.device, torch.bfloat16)
        return model.eval().requires_grad_(False)

    @cached_property
    def half_eager_teacher(self) -> BertForSequenceClassification:
        """The parameters of that copy under eager attention."""
        model = classifier(self.sizes[1], "eager", self.dropout)
        model.load_state_dict(self.half_teacher.state_dict(), assign=True)
        return model.to(self.device).eval().requires_grad_(False)

    def student(self, attention: str = "sdpa") -> BertForSequenceClassification:
        """A student that no other row trains."""
        return classifier(self.sizes[0], attention, self.dropout).to(self.device).train()


def text_rows(lengths: Sequence[int], seed: int = 0) -> Dataset:
    """Rows of random tokens, with a label each.

    Args:
        lengths: of the rows, in tokens.
        seed: of tokens and labels.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(FIRST_WORD, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    labels = torch.randint(0, CLASSES, (len(rows),), generator=generator).tolist()
    return Dataset.from_dict(
        {"input_ids": rows, "attention_mask": [[1] * length for length in lengths], "labels": labels}
    )


class Padding:
    """Makes a batch of rows: the benchmarks' data collator, which counts what it made.

    Args:
        length: tokens to which every row is padded; None: to the longest of its batch.

    Attributes:
        sizes: tokens of each batch made so far, padding included.
    """

    def __init__(self, length: int | None = None) -> None:
        self.length = length
        self.sizes: list[int] = []

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Inputs:
        """The rows as tensors: tokens and mask (B, N), labels (B,)."""
        longest = self.length or max(len(row["input_ids"]) for row in rows)
        batch = {
            name: torch.tensor([[*row[name], *[filler] * (longest - len(row[name]))] for row in rows])
            for name, filler in PADDED.items()
        }
        self.sizes.append(len(rows) * longest)
        return batch | {"labels": torch.tensor([row["labels"] for row in rows])}
