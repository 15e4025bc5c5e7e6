"""A compiled student and a compiled teacher learn and teach what uncompiled ones do, and are compiled once.

What the capture hangs on a model changes with every pass. If the compiler looked at that, it would compile every step
anew until it gave up. Most tests use a backend that runs the compiler's graph as it is, without generating code.
"""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from toy_models import toy_bert, toy_gpt2, toy_llama
from training_toys import logged, text_rows, trainer_of
from transformers import PreTrainedModel, TrainerCallback

from hfdistill import (
    AttentionMapLoss,
    AttentionRelationLoss,
    HiddenStateLoss,
    Objective,
    SoftTargetLoss,
    TaskLoss,
    VocabularyDivergenceLoss,
    VocabularyTaskLoss,
)

# a classifier that is not told writes this into its configuration in the first step, and is compiled again for it
ONE_LABEL = {"problem_type": "single_label_classification"}
SMALL, LARGE = {"layers": 1, "width": 8}, {"layers": 2, "seed": 1}  # each layer costs the compiler its time


@pytest.fixture(autouse=True)
def _silent_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep pytest from collecting the compiler's own trace, thousands of lines a graph."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)


class Witness(TrainerCallback):
    """Keeps the gradients of the first step, and how many graphs were compiled by the end of each."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}
        self.graphs: list[int] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if not self.gradients:
            named = nn.Module.named_parameters(given["model"])
            found = {name.removeprefix("_orig_mod."): p.grad for name, p in named}
            self.gradients = {name: grad.clone() for name, grad in found.items() if grad is not None and grad.any()}

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.graphs.append(counters["stats"]["unique_graphs"])


def run(
    folder: Path,
    objective: Objective,
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    backend: str | None,
    tokens: tuple[int, int] = (7, 7),
    **changes: Any,
) -> tuple[list[float], Witness]:
    """Losses and witness of four steps; with a backend both models are compiled by it."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(2)
    if backend is not None:
        teacher.compile(backend=backend)
        changes |= {"torch_compile": True, "torch_compile_backend": backend}
    witness = Witness()
    rows = text_rows(8, tokens)
    if student.config.model_type == "gpt2":
        rows = rows.map(lambda row: {"labels": row["input_ids"]})
    settings = {"max_steps": 4, "callbacks": [witness]} | changes
    trainer = trainer_of(folder, objective, student, rows, teacher=teacher, **settings)
    trainer.train()
    return [line["loss"] for line in logged(trainer)], witness


def everything() -> Objective:
    """Every kind of knowledge that is captured."""
    relation = AttentionRelationLoss(relations=("query-query", "value-value"))
    return Objective(
        task=TaskLoss(), kd=SoftTargetLoss(), hidden=HiddenStateLoss(), attention=AttentionMapLoss(), relation=relation
    )


def vocabulary() -> Objective:
    """Logits that are made chunk by chunk, outside of the compiled pass."""
    return Objective(task=VocabularyTaskLoss(), kd=VocabularyDivergenceLoss())


def language_model(**config: Any) -> PreTrainedModel:
    """GPT-2 with its head."""
    return toy_gpt2(head="LMHeadModel", **config)


CASES: dict[str, tuple[Callable[..., PreTrainedModel], Callable[[], Objective], str, dict[str, Any]]] = {
    "bert": (toy_bert, everything, "aot_eager", {}),
    "llama": (toy_llama, everything, "eager", {}),
    "vocabulary": (language_model, vocabulary, "eager", {}),
    "mixed rows": (toy_bert, lambda: Objective(kd=SoftTargetLoss()), "eager", {"uncertainty_mixup": True}),
    "perturbed": (toy_bert, lambda: Objective(kd=SoftTargetLoss()), "eager", {"embedding_perturbation": 0.5}),
}


def compared(folder: Path, name: str, backend: str, **changes: Any) -> tuple[list[int], bool]:
    """Hold a compiled run to an uncompiled one; graphs at each step, and whether a graph was broken."""
    make, objective, _, settings = CASES[name]
    results = []
    for chosen in (None, backend):
        models = make(**SMALL, **ONE_LABEL), make(**LARGE, **ONE_LABEL)
        results.append(run(folder, objective(), *models, chosen, **settings, **changes))
    (losses, plain), (compiled_losses, compiled) = results
    assert compiled_losses == pytest.approx(losses, rel=1e-5)
    assert len(set(losses)) == 4, "nothing was learnt"
    assert compiled.gradients.keys() == plain.gradients.keys()
    for key, gradient in plain.gradients.items():
        torch.testing.assert_close(compiled.gradients[key], gradient, rtol=1e-4, atol=1e-6)
    return compiled.graphs, bool(counters["graph_break"])


@pytest.mark.parametrize("name", CASES)
def test_compiled_models_learn_the_same_and_are_compiled_once(tmp_path: Path, name: str) -> None:
    """Same losses and gradients; a graph for each kind of pass, made by the end of the first step, none broken."""
    graphs, broken = compared(tmp_path, name, CASES[name][2])
    assert graphs[0] >= 2, "student and teacher were not both compiled"
    assert graphs == graphs[:1] * 4
    assert not broken


@pytest.mark.slow
def test_a_new_length_is_compiled_for_once(tmp_path: Path) -> None:
    """Batches of every length come by in an epoch; only the second one tells the compiler that lengths change."""
    graphs, _ = compared(tmp_path, "bert", "eager", tokens=(3, 12), per_device_train_batch_size=1, max_steps=4)
    assert graphs[1] > graphs[0] or graphs[2] > graphs[0], "all batches had one length: nothing is shown"
    assert graphs[-1] <= 2 * graphs[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler looks for it
def test_layers_that_are_computed_twice_may_be_compiled(tmp_path: Path) -> None:
    """The compiler leaves recomputed layers of which attention is noted alone, and gradients stay right."""
    graphs, _ = compared(tmp_path, "bert", "eager", activation_checkpointing=True)
    assert graphs == graphs[:1] * 4


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # inductor's own
def test_generated_code_learns_the_same(tmp_path: Path) -> None:
    """What users run: inductor, which fuses operations and rounds otherwise."""
    graphs, _ = compared(tmp_path, "bert", "inductor")
    assert graphs == graphs[:1] * 4
