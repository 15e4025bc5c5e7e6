"""The sections of a model card: each is written from what lies in a student's folder, and empty where nothing does.

Figures are those that were measured. Nothing is guessed: what no record tells is not written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hfdistill.measurement import size_on_disk
from hfdistill.publishing.folder import StudentFolder
from hfdistill.report.results import ArmResult, markdown_table, results_table

CONTROL = "control"
_HYPER_PARAMETERS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "max_grad_norm"),
    *("label_smoothing_factor", "bf16", "fp16", "train_sampling_strategy"),
)


def summary(student: StudentFolder, name: str) -> str:
    """What the model is, in a few sentences."""
    record = student.record
    if not record:
        return f"# {name}\n\nA model saved by transformers. How it was trained is not recorded beside it."
    facts, teacher = record["student"], record["teacher"]
    kind = f"a `{facts['class']}` of {facts['parameters']:,} parameters"
    if facts["adapter"]:
        kind += f", {facts['trained_parameters']:,} of them trained, as an adapter ({facts['adapter']['peft_type']})"
        kind += " that is merged into its base here" * (not student.adapter)
    if teacher is None:
        return f"# {name}\n\nThis is {kind}, trained on labels alone, without a teacher."
    large = f", {teacher['parameters']:,} parameters" if teacher["parameters"] else ""
    method = f" by the method `{record['preset']}`" if record["preset"] else ""
    own_base = "its own base, the adapter switched off: " * bool(teacher.get("shared_base"))
    return (
        f"# {name}\n\nThis is {kind}, distilled{method} from {own_base}{_named(teacher, 'a teacher')} "
        f"(`{teacher['class']}`{large}) with [hfdistill](#versions), knowledge distillation inside the Hugging Face "
        "Trainer."
    )


def loading(student: StudentFolder, repository: str) -> str:
    """The lines that load it."""
    kind, place = student.auto_class, repository or "path/to/this/folder"
    if not kind:
        return ""
    processor = "AutoImageProcessor" if student.task == "image-classification" else "AutoTokenizer"
    beside = any(path.name in ("preprocessor_config.json", "tokenizer_config.json") for path in student.published)
    imports, lines = [kind, *([processor] * beside)], []
    if student.adapter:
        classes = f", num_labels={len(student.labels)}" * ("Classification" in kind and bool(student.labels))
        lines += [f'base = {kind}.from_pretrained("{student.base or "path/to/its/base"}"{classes})']
        lines += [f'model = PeftModel.from_pretrained(base, "{place}")']
    else:
        lines += [f'model = {kind}.from_pretrained("{place}")']
    if beside:
        lines += [f'processor = {processor}.from_pretrained("{place}")']
    peft = ["from peft import PeftModel"] if student.adapter else []
    code = "\n".join([*peft, f"from transformers import {', '.join(sorted(imports))}", "", *lines])
    return f"## How to load it\n\n```python\n{code}\n```"


def results(student: StudentFolder) -> str:
    """Teacher, control and student compared, and the seeds behind the means."""
    found = student.results
    if not found:
        return _logged(student)
    metric, protocol = str(found["metric"]), found.get("protocol", {})
    teacher, arms = ArmResult.from_record(found["teacher"]), [ArmResult.from_record(arm) for arm in found["arms"]]
    lines = [f"## Results\n\n{results_table(arms, metric, teacher)}\n"]
    seeds = protocol.get("seeds", [])
    for arm in arms:
        values = ", ".join(f"{100 * values[metric]:.2f}" for values in arm.metrics)
        of = f" (seeds {', '.join(map(str, seeds))})" if len(seeds) == len(arm.metrics) else ""
        lines.append(f"* {metric} of {arm.name} per seed{of}: {values} %")
    rows = protocol.get("evaluation_rows", {})
    if rows:
        lines.append(f"* evaluation rows: {', '.join(f'{count:,} ({split})' for split, count in rows.items())}")
    if (seed := _seed(student)) is not None and len(seeds) > 1:
        lines.append(f"* the weights here are those of seed {seed}")
    if any(arm.name == CONTROL for arm in arms):
        lines.append("* control: the same student, with the same rows and steps, trained on the labels alone")
    if any(len(arm.metrics) > 1 for arm in arms):
        lines.append("* ± is the standard deviation over seeds")
    return "\n".join(lines)


def costs(student: StudentFolder) -> str:
    """Parameters, size and measured latency."""
    lines = []
    if student.record:
        lines.append(f"* parameters: {student.record['student']['parameters']:,}")
    lines.append(f"* size on disk, of all that inference reads: {size_on_disk(student.path) / 1e6:.4g} MB")
    arms = [student.results["teacher"], *student.results["arms"]] if student.results else []
    timed = [{"model": arm["name"], **entry} for arm in arms for entry in arm.get("latencies", ())]
    own = own_arm(student)
    timed += [{"model": own.name if own else "student", **entry} for entry in student.export.get("latencies", ())]
    rows = [
        {
            **{"model": entry["model"], "runtime": entry["runtime"], "rows at once": entry["batch_size"]},
            "ms per batch": f"{1000 * entry['seconds']:.2f}",
            "rows/s": f"{entry['batch_size'] / entry['seconds']:.1f}",
            **{"device": entry["device"], "threads": entry["threads"]},
        }
        for entry in timed
        if entry["seconds"] > 0
    ]
    if rows:
        lines.append(f"\nLatency, median of warm passes on {_machine(student)}:\n")
        lines.append(markdown_table(rows, list(rows[0])))
    return "\n".join(["## Size and speed\n", *lines])


def distillation(student: StudentFolder) -> str:
    """The objective term by term, the layers compared, data and hyper-parameters."""
    record = student.record
    if not record:
        return ""
    columns = ["term", "loss", "weight", "settings", "layers (student from teacher)"]
    terms = [
        (term["name"], term["class"], _text(term["weight"]), _settings(term["options"]), _pairs(term["layers"]))
        for term in record["objective"]
    ]
    table = markdown_table([dict(zip(columns, term, strict=True)) for term in terms], columns)
    training, arguments = record["training"], record["arguments"]
    told = {"rows": training["rows"], "steps": training["steps"], "epochs": training["epochs"]}
    told |= {"rows per update": training["batch_size"], "seed": training["seed"]}
    told |= {"seconds": training["seconds"], "mean training loss": training["train_loss"]}
    told |= {name: arguments[name] for name in _HYPER_PARAMETERS if arguments.get(name) not in (None, False, "")}
    data = _data(student)
    lines = [f"* data: {data}"] if data else []
    lines += [f"* {name}: {_text(value)}" for name, value in told.items() if value is not None]
    origin = record["student"]["base_model"]
    lines.append(f"* the student started from {_named(origin, 'a model')}")
    return f"## How it was trained\n\nThe loss is the weighted sum of these terms:\n\n{table}\n\n" + "\n".join(lines)


def limitations(student: StudentFolder) -> str:
    """What nobody should expect of it: what is true of any student, and what the records show of this one."""
    lines = []
    if student.record and student.record["teacher"] is not None:
        lines.append("It was taught by its teacher's answers, and inherits the teacher's errors and biases.")
        lines.append("A smaller model forgets first what is rare: classes and groups with few rows may fare worse.")
    data = _data(student)
    if data:
        lines.append(f"It was trained and evaluated on one data set, {data}; elsewhere it may do worse.")
    if student.labels:
        lines.append(f"It knows these {len(student.labels)} labels and no other: {_listed(student.labels)}.")
    arm = own_arm(student)
    if arm is None and student.record.get("teacher"):
        lines.append("It was not compared with its teacher or with a control here.")
    if arm is not None and len(arm.metrics) == 1:
        lines.append("One seed was run: another seed may give another figure.")
    lines.append("It was not tested for fairness, for robustness, or against attacks.")
    return "## Limitations\n\n" + "\n".join(f"* {line}" for line in lines)


def versions(student: StudentFolder, version: str) -> str:
    """What the folder holds, and what wrote it."""
    packages = ", ".join(f"{name} {number}" for name, number in student.record.get("versions", {}).items())
    lines = [f"* trained with {packages}"] if packages else []
    if student.record.get("machine"):
        lines.append(f"* trained on {student.record['machine']}")
    lines.append(f"* files: {', '.join(f'`{path.name}`' for path in student.published)}")
    lines.append(
        f"* this card was written by hfdistill {version} from the records among these files; `hfdistill push` "
        "publishes them in one commit, and nothing else of the folder"
    )
    return "## Versions\n\n" + "\n".join(lines)


def citation(student: StudentFolder) -> str:
    """One BibTeX entry per paper that the losses come from."""
    papers = {paper["link"]: paper for term in student.record.get("objective", ()) for paper in term.get("papers", ())}
    if not papers:
        return ""
    entries = "\n\n".join(_bibtex(paper) for paper in papers.values())
    return f"## Citation\n\n```bibtex\n{entries}\n```"


def own_arm(student: StudentFolder) -> ArmResult | None:
    """The row of results.json that this student belongs to: the one that is not the control, if there is another."""
    arms = [ArmResult.from_record(arm) for arm in student.results.get("arms", ())]
    others = [arm for arm in arms if arm.name != CONTROL] or arms
    named = [arm for arm in others if arm.name == student.path.absolute().parent.name]  # <arm>/seed-<k>
    return next(iter(named or others), None)


def own_metrics(student: StudentFolder) -> Mapping[str, float]:
    """The figures of these very weights: of this student's seed; empty where the records do not tell which that is."""
    arm, seeds = own_arm(student), student.results.get("protocol", {}).get("seeds", [])
    if arm is None:
        return {}
    if len(arm.metrics) == 1:
        return arm.metrics[0]
    seed = _seed(student)
    return arm.metrics[seeds.index(seed)] if seed in seeds and len(seeds) == len(arm.metrics) else {}


def _logged(student: StudentFolder) -> str:
    """What the trainer itself evaluated, where no comparison was run."""
    found: Mapping[str, float] = student.record.get("evaluation", {})
    if not found:
        return "## Results\n\nNo evaluation is recorded beside this model."
    lines = [f"* {name.removeprefix('eval_')}: {value:.4g}" for name, value in found.items() if value is not None]
    return "## Results\n\nAs evaluated by the trainer on its evaluation rows:\n\n" + "\n".join(lines)


def _seed(student: StudentFolder) -> int | None:
    seed: int | None = student.record.get("training", {}).get("seed")
    return seed


def _machine(student: StudentFolder) -> str:
    return str(student.results.get("protocol", {}).get("machine") or student.record.get("machine") or "one machine")


def _data(student: StudentFolder) -> str:
    data = student.results.get("protocol", {}).get("data", {})
    part = f" ({data['config']})" if data.get("config") else ""
    return f"`{data['name']}`{part}" if data.get("name") else ""


def _named(origin: Mapping[str, str], what: str) -> str:
    """A model by its origin: a link to the hub, a folder's name, or that it was built in memory."""
    if origin["place"] == "hub":
        return f"[{origin['name']}](https://huggingface.co/{origin['name']})"
    return f"{what} in a local folder, `{origin['name']}`," if origin["name"] else f"{what} built in memory"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def _settings(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_text(value)}" for name, value in options.items() if value is not None)


def _pairs(layers: Sequence[Sequence[int]]) -> str:
    return ", ".join(f"{ours} from {theirs}" for ours, theirs in layers)


def _listed(labels: Sequence[str], most: int = 20) -> str:
    shown = ", ".join(f"`{label}`" for label in labels[:most])
    return shown if len(labels) <= most else f"{shown} and {len(labels) - most} more"


def _bibtex(paper: Mapping[str, Any]) -> str:
    authors = str(paper["authors"])
    words = re.findall(r"\w+", f"{authors.split()[0]} {paper['year']} {paper['title']}".lower())
    fields = {
        "title": f"{{{paper['title']}}}".replace("&", r"\&"),
        "author": authors.replace(" et al.", " and others").replace(", ", " and "),
        "year": paper["year"],
        "url": paper["link"],
    }
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    return f"@misc{{{''.join(words[:3])},\n{lines}\n}}"
