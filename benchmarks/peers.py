"""TextBrewer beside hfdistill on the same batches: same models, losses, optimizer, in turn.

    PYTHONPATH=FOLDER python -m benchmarks.peers [--batch 16 --tokens 64 --rounds 5 --output x.json]

logits: soft cross-entropy at T = 4. layers: with it the hidden states of the embeddings and of each student layer, a
projection for each, and the attention maps (probabilities) of each student layer. Labels are not learnt; float32, the
same AdamW, no clipping, dropout 0.1. TextBrewer needs eager attention for the maps. Before anything is timed, both
compute their losses on one batch with the same weights and projections, without dropout.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.bare import batches, optimizer_of
from benchmarks.machine import add_options, description, settle
from benchmarks.models import Inputs, Models, Padding, Size
from benchmarks.rounds import clock, interleaved
from benchmarks.section import Section
from benchmarks.steps import Workbench
from benchmarks.table import printed
from benchmarks.textbrewer_adaptor import ADVICE, Distiller, available
from benchmarks.trained import Trained, steps_of
from hfdistill import AttentionMapLoss, DistillationLoss, HiddenStateLoss, Objective, SoftTargetLoss

TEMPERATURE = 4.0
KINDS = ("logits", "layers")


def terms() -> dict[str, DistillationLoss]:
    """TextBrewer's losses as hfdistill has them."""
    return {
        "kd": SoftTargetLoss(TEMPERATURE, divergence="cross_entropy", scale_by_temperature=False),
        "hidden": HiddenStateLoss("uniform"),
        "attention": AttentionMapLoss("uniform", target="probabilities"),
    }


PARTS = {"kd": "kd_loss", "hidden": "hidden_mse", "attention": "attention_mse"}
"""A term of ours -> how TextBrewer calls its own, of which it has one for each pair of layers."""


def objective(kind: str) -> Objective:
    """The terms of a kind.

    Args:
        kind: "logits", or "layers" for the intermediate ones too.
    """
    return Objective(kd=terms()["kd"]) if kind == "logits" else Objective(**terms())


def distiller(models: Models, kind: str, folder: Path) -> Distiller:
    """TextBrewer's distiller of a fresh student.

    Args:
        models: of the run.
        kind: see `objective`.
        folder: for what it would write.
    """
    if kind == "logits":
        return Distiller(models.student(), models.teacher, folder, temperature=TEMPERATURE)
    return Distiller(models.student("eager"), models.eager_teacher, folder, True, TEMPERATURE)


def unlabelled(data: Iterator[Inputs]) -> Iterator[Inputs]:
    """The batches without labels: these are not learnt, and the models would compute a loss of them."""
    for inputs in data:
        yield {name: tensor for name, tensor in inputs.items() if name != "labels"}


def loss_values(trained: Trained, inputs: Inputs) -> dict[str, tuple[float, float]]:
    """Each term as hfdistill and as TextBrewer computes it, on the same weights and projections.

    Args:
        trained: of models without dropout.
        inputs: one batch.
    """
    peer = distiller(trained.models, "layers", trained.folder)
    _, theirs = peer.losses({name: tensor for name, tensor in inputs.items() if name != "labels"})
    projections = [projection for projection in peer.projections if projection is not None]
    found = {}
    for name, loss in terms().items():
        trainer = trained.trainer(Objective(**{name: loss}), "live")
        trainer.placement.place(trainer.teacher)
        if isinstance(loss, HiddenStateLoss):
            for own, other in zip(loss.projectors, projections, strict=True):
                copied(own, other)
        ours = trainer.compute_loss(trainer.model.train(), dict(inputs)).item()
        found[name] = (ours, sum(value.item() for key, value in theirs.items() if PARTS[name] in key))
    return found


def copied(own: torch.nn.Module, other: torch.nn.Module) -> None:
    """Give a projector the weights of another library's."""
    with torch.no_grad():
        for parameter, value in zip(own.parameters(), other.parameters(), strict=True):
            parameter.copy_(value)


def timed_rows(bench: Workbench) -> dict[str, Callable[[], None]]:
    """Both libraries on each kind of losses, and the floor.

    Args:
        bench: whose data all rows have.
    """
    rows = {"floor": bench.step("floor")}
    for kind in KINDS:
        peer = distiller(bench.models, kind, bench.folder)
        data = unlabelled(batches(bench.rows, bench.batch, bench.models.device, Padding()))
        rows[f"hfdistill {kind}"] = steps_of(bench.trained.trainer(objective(kind), "live"))
        rows[f"TextBrewer {kind}"] = peer.steps(data, optimizer_of(peer.student))
    return rows


def measured(options: argparse.Namespace, folder: Path) -> Section:
    """The losses' values, and the samples of each row.

    Args:
        options: of this benchmark.
        folder: for whatever is written.
    """
    place = settle(options)
    sizes = Size.parse(options.teacher), Size.parse(options.student)
    check = Workbench(Models(*sizes, place, dropout=0.0), min(options.batch, 4), options.tokens, folder)
    inputs = next(batches(check.rows, check.batch, place, Padding()))
    settings = {key: vars(options)[key] for key in ("student", "teacher", "batch", "tokens", "rounds")}
    bases = ["floor", *(f"TextBrewer {kind}" for kind in KINDS)]
    section = Section("hfdistill and TextBrewer on the same batches", settings | {"bases": bases})
    for name, (ours, theirs) in loss_values(check.trained, inputs).items():
        section.figures |= {f"{name}, hfdistill": ours, f"{name}, TextBrewer": theirs}
    bench = Workbench(Models(*sizes, place), options.batch, options.tokens, folder)
    rows = timed_rows(bench)
    section.seconds = interleaved(rows, options.rounds, clock(place, options.clock))
    section.tokens = {name: float(options.batch * options.tokens) for name in rows}
    return section


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print a table; write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args(words)
    if not available():
        raise SystemExit(ADVICE)
    with TemporaryDirectory() as folder:
        section = measured(options, Path(folder))
    section.machine = description(options)
    section.save(options.output)
    print(printed(section))


if __name__ == "__main__":
    main()
