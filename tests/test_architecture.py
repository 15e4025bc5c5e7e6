"""The house's plan, kept: who may import whom, what stays free of what, and that no loss is forgotten.

The source is read, not run, except where a subprocess proves what an import really loads.
"""

import re
import subprocess
import sys
from fnmatch import fnmatchcase
from functools import cache
from graphlib import CycleError, TopologicalSorter

import pytest
from source_tree import PACKAGE, REPOSITORY, Import, Source, sources

import hfdistill

# What is kept of a teacher, in the order in which it is made of each other.
CACHE = ("folders", "shards", "keys", "store", "entries", "collator", "cache")
# A module imports only modules of the lines above its own. This is the order of reading, too.
LINES = (
    (
        "functional",
        "functional.*",
        "keywords",
        "layer_map",
        "names",
        "patches",
        "projector",
        "schedules",
        "vision_stages",
    ),
    (
        *("anatomy", "representations", "capture", "attention_inputs", "output_head"),
        *("distributed", "distributed.sharding"),
    ),
    ("losses", "losses.*"),
    ("objective",),
    (  # its second half is what trainer and report are made of
        *("adapters", "attachment", "few_sample", "freezing", "meta_gradient", "perturbation"),
        *("schemes", "schemes.*", "teachers", "teacher_cache"),
        *(f"teacher_cache.{name}" for name in (*CACHE, "probing", "teacher")),
        *("compatibility", "distillation_token", "evaluation", "item_counts", "likeness", "measurement", "mixup"),
        *("model_loading", "objective_state", "observation", "row_checks", "sample_index", "saved_model"),
        *("shared_base", "student_sizes", "student_state"),
        *("teacher_precision", "teacher_pass", "teacher_tokens", "teacher_watch", "term_averages"),
        *(f"images.{name}" for name in ("augmentation", "decoding", "labels", "mixing", "pixels", "sources")),
    ),
    ("distributed.launch", "distributed.placement"),
    # What a trainer writes beside its student, of the figures that a report holds.
    ("report", "report.contents", "report.results", "report.statistics"),
    ("checkpoints", "checkpoints.*"),
    ("faults", "faults.*"),
    ("checks", "checks.findings", "checks.preflight"),
    ("publishing", "publishing.*"),
    (
        *("presets", "presets.*", "arguments", "configuration", "images.pairing", "model_inputs", "pairing"),
        *("teaching", "teacher_cache.opening", "teacher_cache.trainer", "trainer"),
    ),
    (
        *("arms", "students", "stages", "glue", "run_record", "methods", "class_names", "comparison", "peak_memory"),
        "teacher_cache.filling",
        *(f"checks.{name}" for name in ("answers", "doctor", "examination", "layers", "memory", "reading")),
        *("checks.steadiness", "checks.terms"),
    ),
    ("report.*", "export", "images", "images.*"),
    ("experiment",),
    ("classification",),
    ("text_classification", "image_classification"),
    ("recipe_arguments",),
    ("equivalence", "equivalence.*"),
    ("checks.recipe", "teacher_cache.recipes"),
    ("cli",),
)
# What losses are made of: no method of its own stands in them.
LOSS_BASES = tuple(
    f"losses.{name}"
    for name in (
        *("base", "batch_relation", "bilevel", "embedding", "gathering", "layerwise"),
        *("logits", "memory", "method", "papers", "places", "pooling"),
    )
)
# What a report is made of, beside the figures that a trainer needs too.
REPORT = (
    *("calibration", "similarity", "record", "folders", "scores", "costs", "figures", "finding"),
    *("markdown", "page"),
)
# What a module may import of its own line. A folder's __init__ may import the folder's modules besides.
SAME_LINE = {
    "functional.*": ("functional.reductions",),
    "attention_inputs": ("representations",),
    "capture": ("anatomy", "attention_inputs", "output_head", "representations"),
    "output_head": ("anatomy", "distributed.sharding", "representations"),
    "losses.*": LOSS_BASES,
    "teachers": ("model_loading", "teacher_cache", "teacher_pass", "teacher_tokens"),
    "images.mixing": ("mixup",),
    "row_checks": ("images.pixels", "teachers"),
    "saved_model": ("model_loading",),
    "teacher_cache.opening": ("arguments",),
    "teacher_cache.trainer": ("arguments", "model_inputs", "teacher_cache.opening", "teaching"),
    "teacher_cache.*": (
        *(f"teacher_cache.{name}" for name in CACHE),
        *("teacher_precision", "teacher_tokens"),
    ),
    "distributed.placement": ("distributed.launch",),
    "images.*": tuple(f"images.{name}" for name in ("augmentation", "decoding", "labels", "sources")),
    "checkpoints.*": tuple(f"checkpoints.{name}" for name in ("batch_randomness", "folders", "log_sums", "storage")),
    "checks.preflight": ("checks.findings",),
    "checks.*": tuple(
        f"checks.{name}" for name in ("answers", "examination", "layers", "memory", "reading", "steadiness", "terms")
    ),
    "faults.*": tuple(f"faults.{name}" for name in ("memory", "nonfinite", "processes", "record", "workers")),
    "presets.*": ("presets.shares",),
    "publishing.*": tuple(
        f"publishing.{name}" for name in ("record", "folder", "card_sections", "card", "merging", "repository")
    ),
    "shared_base": ("adapters", "teachers"),
    "report.results": ("report.statistics",),
    "report.contents": ("report.statistics",),
    "report.*": tuple(f"report.{name}" for name in REPORT),
    "pairing": ("arguments", "images.pairing"),
    "configuration": ("presets",),
    "equivalence.*": tuple(
        f"equivalence.{name}"
        for name in (
            *("comparisons", "differences", "facts", "processes", "recipes", "relations"),
            *("short_runs", "variations"),
        )
    ),
    "observation": ("attachment",),
    "perturbation": ("attachment",),
    "student_state": ("attachment",),
    "trainer": (
        "arguments",
        "configuration",
        "model_inputs",
        "pairing",
        "presets",
        "teaching",
        "teacher_cache.trainer",
    ),
}
# Where the lines above allow more than a module should see: importer -> (of this, only these).
NARROWER = {"objective": ("losses*", ("losses.base", "losses.bilevel"))}
# What may come from outside the project, where that is limited; the standard library always may.
THIRD_PARTY = {
    "functional": {"torch"},
    "functional.*": {"torch"},
    "layer_map": set(),
    "projector": {"torch"},
    "schedules": set(),
    "losses": {"torch"},
    "losses.*": {"torch"},
}
MODULES = tuple(source for source in sources(PACKAGE) if source.module)


def line_of(module: str) -> int | None:
    """Return the index of the line of LINES on which a module stands, or None if it has none."""
    hits = (index for index, patterns in enumerate(LINES) if any(fnmatchcase(module, p) for p in patterns))
    return next(hits, None)


def inside(imported: Import) -> str | None:
    """Return the imported module's name within the package, "" for the package itself, or None if it is foreign."""
    top, _, rest = imported.module.partition(".")
    return rest if top == PACKAGE else None


def objection(source: Source, imported: Import) -> str | None:
    """Say why a module may not import another one of the package, or None if it may."""
    importer, target = source.module, inside(imported)
    where = f"{source.place}:{imported.line}"
    if target == "":
        if imported.name == "__version__":
            return None
        return f"{where} imports {imported.name or PACKAGE} from the package itself: import its submodule"
    mine, theirs = line_of(importer), line_of(target or "")
    if mine is None or theirs is None:
        return None  # test_every_module_stands_on_a_line tells
    only = next((rule for pattern, rule in NARROWER.items() if fnmatchcase(importer, pattern)), None)
    if only and fnmatchcase(target or "", only[0]) and target not in only[1]:
        return f"{where} imports {target}, but may see only {', '.join(only[1])} of {only[0]}"
    peers = next((names for pattern, names in SAME_LINE.items() if fnmatchcase(importer, pattern)), ())
    folder = source.path.name == "__init__.py" and (target or "").startswith(f"{importer}.")
    if theirs < mine or folder or (theirs == mine and target in peers):
        return None
    beside = f", and {', '.join(peers)}" if peers else ""
    return f"{where} imports {target}: a module of line {mine + 1} may import the lines above it{beside}"


@cache
def graph(at_load_only: bool) -> dict[str, set[str]]:
    """Return which modules of the package each one imports, with or without the imports inside functions."""
    return {
        source.module: {
            target
            for imported in source.imports
            if (target := inside(imported)) and not (at_load_only and imported.deferred)
        }
        for source in MODULES
    }


def reached_from(start: str) -> set[str]:
    """Return every module of the package that `start` imports, directly or not, itself included."""
    found, todo = set(), [start, *(source.module for source in MODULES if source.module.startswith(f"{start}."))]
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo.extend(graph(at_load_only=False).get(module, ()))
    return found


def loaded_by(statement: str) -> set[str]:
    """Return the top-level names of all modules that a fresh interpreter holds after a statement."""
    program = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_every_module_stands_on_a_line() -> None:
    """A module without a line would be checked by nothing."""
    assert MODULES, "found no module of the package: the tests of this file would all pass for nothing"
    homeless = [source.place for source in MODULES if line_of(source.module) is None]
    assert not homeless, (
        f"{homeless} stand on no line of LINES in {__name__}.py. Add each to the line below everything it imports; "
        "if it fits none, it does two things: split it."
    )


@pytest.mark.parametrize("source", MODULES, ids=lambda source: source.place)
def test_imports_point_upwards(source: Source) -> None:
    """One direction of imports is what lets a reader stop at the line he understands."""
    own = [imported for imported in source.imports if inside(imported) is not None]
    found = [text for imported in own if (text := objection(source, imported))]
    assert not found, "\n".join(found)


def test_no_import_cycle() -> None:
    """A cycle works until somebody imports the other module first."""
    try:
        TopologicalSorter(graph(at_load_only=True)).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_third_party_imports_are_limited() -> None:
    """The mathematics runs wherever torch does, and the rules and schedules wherever Python does."""
    found = []
    for source in MODULES:
        allowed = next((names for pattern, names in THIRD_PARTY.items() if fnmatchcase(source.module, pattern)), None)
        if allowed is None:
            continue
        tops = {imported.module.partition(".")[0] for imported in source.imports}
        extra = tops - allowed - {PACKAGE} - sys.stdlib_module_names
        found += [f"{source.place} imports {name}; it may import {sorted(allowed) or 'nothing'}" for name in extra]
    assert not found, "\n".join(found)


def test_package_itself_imports_the_standard_library_only() -> None:
    """Whatever __init__ imports, every user pays for, whichever name he wants."""
    (package,) = (source for source in sources(PACKAGE) if not source.module)
    foreign = {imported.module for imported in package.imports} - sys.stdlib_module_names
    assert not foreign, f"{package.place} imports {foreign} at once: add the name to its lazy table instead"


def test_import_of_the_package_is_light() -> None:
    """`hfdistill --help` and editors must not wait seconds for torch and transformers."""
    heavy = {"torch", "transformers", "accelerate", "datasets", "numpy"} & loaded_by("import hfdistill")
    assert not heavy, f"`import hfdistill` loads {heavy}"


def test_losses_are_free_of_transformers_in_the_source() -> None:
    """A loss sees Representations, never a model: it must work for any model that can be captured."""
    reached = reached_from("losses")
    found = [
        f"{source.place}:{imported.line}"
        for source in MODULES
        if source.module in reached
        for imported in source.imports
        if imported.module.partition(".")[0] == "transformers"
    ]
    assert not found, f"hfdistill.losses reaches transformers through {found}"


def test_losses_are_free_of_transformers_when_imported() -> None:
    """The source may look clean while a dependency pulls transformers in."""
    assert "transformers" not in loaded_by("import hfdistill.losses")


def test_catalogue_holds_every_loss() -> None:
    """A loss outside the catalogue cannot be named in a configuration and is tested by no test over all losses."""
    from hfdistill.losses import CATALOGUE

    written = {
        node.name
        for source in MODULES
        if source.module.startswith("losses.") and source.module not in LOSS_BASES
        for node in source.classes()
        if node.name.endswith("Loss") and not node.name.startswith("_")
    }
    assert written == set(CATALOGUE), f"not in both places: {sorted(written ^ set(CATALOGUE))}"


@pytest.mark.parametrize("place", ["docs/methods.md"])
def test_every_loss_is_documented(place: str) -> None:
    """A loss that the docs do not name is found by nobody."""
    from hfdistill.losses import CATALOGUE

    text = (REPOSITORY / place).read_text(encoding="utf-8")
    missing = set(CATALOGUE) - set(re.findall(r"\w+", text))
    assert not missing, f"{place} does not name {sorted(missing)}: say there what each is for, and its paper"


@pytest.mark.parametrize("source", sources("recipes"), ids=lambda source: source.place)
def test_recipes_import_public_names_only(source: Source) -> None:
    """A recipe is copied by users: it must stand on what the project promises to keep."""
    siblings = {other.module for other in sources("recipes")}
    found = []
    for imported in source.imports:
        top, _, rest = imported.module.partition(".")
        public = top != PACKAGE or (not rest and (not imported.name or imported.name in hfdistill.__all__))
        sibling = top != "recipes" or rest in siblings
        if not (public and sibling) or top in {"tests", "benchmarks"}:
            found.append(f"{source.place}:{imported.line} imports {imported.module} {imported.name}".rstrip())
    assert not found, "\n".join(["recipes use only `from hfdistill import ...` and other recipes:", *found])
