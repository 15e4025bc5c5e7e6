"""TextBrewer beside transformers 5: what it takes to import and run it, and its own training step.

TextBrewer 0.2.1 (Yang et al. 2020, https://arxiv.org/abs/2002.12620) imports TensorBoard's writer even where no log is
kept, and writes a checkpoint when training ends. Neither is part of a step: the writer is replaced by an empty module
where TensorBoard is missing, and no checkpoint is written. Everything else is its own code. `steps` does what the loop
of its `train()` does for each batch, in the same order, by its own methods.

It is installed beside the project's environment, not into it (see requirements-peers.txt).
"""

import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NEEDED = "textbrewer"
ADVICE = (
    "TextBrewer is not there: pip install --no-deps --target FOLDER -r benchmarks/requirements-peers.txt, and run "
    "this with FOLDER on PYTHONPATH. It goes into no environment of the project's."
)
Batch = dict[str, Tensor]


def available() -> bool:
    """Whether TextBrewer can be imported."""
    return importlib.util.find_spec(NEEDED) is not None


def textbrewer() -> Any:
    """The library.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if not available():
        raise ModuleNotFoundError(ADVICE)
    known = "tensorboardX" in sys.modules
    if not known and not any(importlib.util.find_spec(name) for name in ("tensorboardX", "tensorboard")):
        stub = types.ModuleType("tensorboardX")
        stub.SummaryWriter = None  # type: ignore[attr-defined]  # made only where a log_dir is given
        sys.modules["tensorboardX"] = stub
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it compares a string by `is`
        import textbrewer as library
    return library


def adaptor(batch: Batch, outputs: Any) -> dict[str, Any]:
    """What TextBrewer asks its users to write: where outputs are found. Labels are not learnt here.

    Args:
        batch: as the models were given it.
        outputs: of one model.
    """
    found = {"logits": outputs.logits, "inputs_mask": batch["attention_mask"]}
    if outputs.get("hidden_states") is not None:
        found["hidden"] = outputs.hidden_states
    if outputs.get("attentions"):
        found["attention"] = outputs.attentions
    return found


def matches(student: Any, teacher: Any) -> list[dict[str, Any]]:
    """TextBrewer's form of TinyBERT's losses: hidden states and attention maps, uniform over the teacher's depth.

    Args:
        student: its configuration.
        teacher: its configuration.
    """
    every = teacher.num_hidden_layers // student.num_hidden_layers
    found: list[dict[str, Any]] = []
    for layer in range(student.num_hidden_layers + 1):
        pair = {"layer_T": layer * every, "layer_S": layer, "feature": "hidden", "loss": "hidden_mse", "weight": 1}
        if student.hidden_size != teacher.hidden_size:
            pair["proj"] = ["linear", student.hidden_size, teacher.hidden_size]
        found.append(pair)
    for layer in range(student.num_hidden_layers):
        own = {"layer_T": (layer + 1) * every - 1, "layer_S": layer}  # maps are counted from 0, without the embeddings
        found.append({**own, "feature": "attention", "loss": "attention_mse", "weight": 1})
    return found


class Distiller:
    """TextBrewer's distiller of one student, and its step.

    Args:
        student: it is trained.
        teacher: it is not.
        intermediate: also match hidden states and attention maps of every student layer; both models must then run
            under eager attention, the only one that shows its maps.
        temperature: of the soft cross-entropy.
        caching: keep the teacher's logits in memory, batch by batch (its BasicDistiller, which learns logits alone).
        folder: where it would write checkpoints.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        folder: Path,
        intermediate: bool = False,
        temperature: float = 4.0,
        caching: bool = False,
    ) -> None:
        library = textbrewer()
        device = next(student.parameters()).device
        settings = library.TrainingConfig(device=str(device), output_dir=str(folder))
        distillation = library.DistillationConfig(
            temperature=temperature,
            intermediate_matches=matches(student.config, teacher.config) if intermediate else None,
            is_caching_logits=caching,
        )
        kind = library.BasicDistiller if caching else library.GeneralDistiller
        self.distiller = kind(settings, distillation, teacher, student, adaptor, adaptor)
        self.distiller.save_and_callback = lambda *_: None
        self.student = student
        self.arguments = {"output_hidden_states": True, "output_attentions": True} if intermediate else {}
        self.projections = [] if caching else self.distiller.projs

    def losses(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The total loss of a batch, and its unweighted terms.

        Args:
            batch: tokens and mask.
        """
        total, terms = self.distiller.train_on_batch(batch, self.arguments)
        return total, terms

    def cached(self, batches: list[Batch]) -> list[Any]:
        """The batches with the teacher's logits, as its own cache holds them.

        Args:
            batches: tokens and mask.
        """
        for batch in batches:
            self.distiller.cache_logits(batch, self.arguments, None)
        return list(self.distiller.logits_cache)

    def steps(self, data: Iterator[Any], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        """One step after another as its `train()` makes them, which adds the projections to the optimizer.

        Args:
            data: batches of tokens and mask, or what `cached` gave.
            optimizer: of the student's parameters.
        """
        distiller = self.distiller
        optimizer, _, _ = distiller.initialize_training(optimizer, None, None, None)
        distiller.model_T.eval()
        distiller.model_S.train()

        def step() -> None:
            total, terms = self.losses(next(data))
            distiller.write_loss(total, 0, terms)  # reads every term back from the device, log or none
            total /= distiller.t_config.gradient_accumulation_steps
            total.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step
