"""Broken recipes and comparisons, command lines, checkpoints, exports, pushes and reports."""

from __future__ import annotations

from toy_models import toy_bert, toy_roberta
from training_toys import text_rows, trainer_of

from broken_input import Case, command, configuration, experiment, resumed, saved
from hfdistill.export import export_onnx
from hfdistill.publishing.push import push_student

NOT_UTF_8 = "teacher: \udcff\n"
RECIPES = (
    Case("no configuration", command("train", "{here}/c.yaml"), SystemExit, r"2: .*no configuration file .*\.yaml or"),
    Case(
        "text for a configuration", command("train", "c.txt"), SystemExit, r"2: .*'c.txt' is neither a flag .* nor a"
    ),
    Case(
        "word that no flag takes", command("train", "--task", "sst2", "rte"), SystemExit, r"'rte' belongs to no flag"
    ),
    Case("misspelt flag", command("train", "--techer", "t"), SystemExit, r"no flag '--techer'.*teacher"),
    Case("empty file", configuration("", good=False), ValueError, r"must hold names with values.*one 'name: value'"),
    Case("tab in YAML", configuration("a:\tb\n\tc: d\n"), ValueError, r"not valid YAML.*spaces, not tabs"),
    Case(
        "broken JSON", configuration('{"task":', "c.json", good=False), ValueError, r"c.json is not valid JSON.*line 1"
    ),
    Case("key twice", configuration("task: rte\n"), ValueError, r"the key 'task' is there twice"),
    Case(
        "key twice in JSON", configuration('{"a": 1, "a": 2}', "c.json", good=False), ValueError, r"'a' is there twice"
    ),
    Case("not UTF-8", configuration(NOT_UTF_8), ValueError, r"c.yaml is not text in UTF-8.*Save it as"),
    Case("code in YAML", configuration("data_dir: !!python/name:os.system\n"), ValueError, r"nothing in it is run"),
    Case("misspelt key", configuration("techer: t\n"), ValueError, r"unknown key 'techer'. Nearest .*: teacher"),
    Case("value of another type", configuration("learning_rate: fast\n"), TypeError, r"learning_rate must be float"),
    Case("token in a file", configuration("hub_token: secret\n"), ValueError, r"holds hub_token.*hf auth login"),
    Case("unknown task", configuration("task: sst3\n", good=False), ValueError, r"got 'sst3'. The tasks are sst2"),
    Case("task and data set", configuration("dataset: d\n"), ValueError, r"dataset would not be read.*Leave out"),
    Case("two teachers", configuration("teacher_body: b\n"), ValueError, r"teacher_body must be left out"),
    Case("nothing to train on", configuration("teacher: t\n", good=False), ValueError, r"say what to train on: task="),
    Case(
        "teacher not there",
        configuration("task: sst2\nteacher: ./none\nstudent_layers: 3\n", good=False),
        FileNotFoundError,
        r"teacher './none' is no folder here",
    ),
    Case(
        "three text columns",
        configuration("dataset: d\ntext_columns: [a, b, c]\nteacher: t\nstudent_layers: 2\n", good=False),
        ValueError,
        r"join columns",
    ),
    Case("no tokens at all", configuration("max_length: 0\n"), ValueError, r"at least 3 tokens, got 0.*Leave it out"),
    Case("dropout above 1", configuration("student_dropout: 1.5\n"), ValueError, r"share in \[0, 1\), got 1.5"),
    Case("no rows to train on", configuration("train_rows: 0\n"), ValueError, r"train_rows must be 1 or more.*got 0"),
    Case(
        "arm outside the folder",
        configuration("arms: ['../x']\nobjectives: {'../x': kd}\n"),
        ValueError,
        r"arm '../x' holds",
    ),
    Case(
        "arm of a device",
        configuration("arms: [nul]\nobjectives: {nul: kd}\n"),
        ValueError,
        r"device on Windows.*kd_t4",
    ),
    Case("arm twice", configuration("arms: [kd, kd]\n"), ValueError, r"'kd' and 'kd' would share a folder"),
    Case(
        "arm called teacher", configuration("arms: [teacher]\nobjectives: {teacher: kd}\n"), ValueError, r"Rename it"
    ),
    Case("control with an objective", configuration("objectives: {control: kd}\n"), ValueError, r"another name.*None"),
    Case(
        "objectives as a list",
        configuration("objectives: [kd]\n"),
        TypeError,
        r"must be names with what they stand for",
    ),
    Case("seed twice", configuration("seeds: [0, 0]\n"), ValueError, r"different whole numbers from 0.*got \[0, 0\]"),
    Case("seed below 0", configuration("seeds: [-1]\n"), ValueError, r"different whole numbers from 0.*got \[-1\]"),
    Case(
        "accelerator file not there",
        configuration("accelerator_config: no.json\n"),
        FileNotFoundError,
        r"names no.json",
    ),
    Case(
        "accelerator option misspelt",
        configuration("accelerator_config: {split_batchs: true}\n"),
        ValueError,
        r"takes no 'split_batchs'.*nearest first: split_batches",
    ),
    Case(
        "DeepSpeed file not there",
        configuration("deepspeed: no.json\n"),
        FileNotFoundError,
        r"read from the folder in",
    ),
)
COMPARISONS = (
    Case("no evaluation", experiment(evaluation={}), ValueError, r"needs evaluation=.*name the right split"),
    Case(
        "evaluation without labels",
        experiment(evaluation={"dev": text_rows(labels=None)}),
        ValueError,
        r"rename the label",
    ),
    Case("metric that is not measured", experiment(metric="f1"), ValueError, r"'f1' is not among those .*'accuracy'"),
    Case(
        "one student for all runs", experiment(make_student=toy_bert()), TypeError, r"fresh student.*Pass a function"
    ),
    Case("arm in another folder", experiment({"/tmp/arm": "kd"}), ValueError, r"'/tmp/arm' holds a character"),
)
FOLDERS = (
    Case("checkpoint not there", resumed("run/checkpoint-7"), FileNotFoundError, r"holds checkpoint-1, checkpoint-2"),
    Case(
        "student for a checkpoint", resumed("student"), ValueError, r"is no checkpoint.*load it and pass it as model"
    ),
    Case("run for a checkpoint", resumed("run"), ValueError, r"holds checkpoint-1, checkpoint-2. Name a folder"),
    Case(
        "checkpoint cut off",
        resumed("run/checkpoint-1", lambda at: (at / "optimizer.pt").write_bytes(b"")),
        ValueError,
        r"optimizer.pt has 0 bytes of",
    ),
    Case(
        "checkpoint of a wider student",
        resumed("run/checkpoint-1", student=toy_bert(width=8)),
        ValueError,
        r"is \(16,\) there and \(8,\) here.*new run",
    ),
    Case(
        "checkpoint of a shallower student",
        resumed("run/checkpoint-1", student=toy_bert(layers=3)),
        ValueError,
        r"it lacks bert.encoder.layer.2",
    ),
    Case(
        "checkpoint of another family",
        resumed("run/checkpoint-1", student=toy_roberta()),
        ValueError,
        r"another model",
    ),
    Case(
        "step for a checkpoint",
        lambda here: trainer_of(here).train(resume_from_checkpoint=5),
        TypeError,
        r"got 5 \(int\)",
    ),
    Case("nothing to export", lambda here: export_onnx(here), ValueError, r"holds no student.*save_model or"),
    Case(
        "export into a folder",
        lambda here: export_onnx(saved(here / "s"), here),
        ValueError,
        r"\(a folder\).*Name a file",
    ),
    Case(
        "export of any tolerance",
        lambda here: export_onnx(here, tolerance=float("nan")),
        ValueError,
        r"usual tolerance",
    ),
    Case(
        "inputs that are no tensors",
        command("export", "{here}", "--batch", __file__),
        SystemExit,
        r"no safetensors file",
    ),
    Case("push to no name", lambda here: push_student(saved(here / "s"), "a//b"), ValueError, r"Give another name"),
    Case(
        "push of nothing", lambda here: push_student(here / "none", "me/it"), FileNotFoundError, r"there is no folder"
    ),
    Case(
        "report of nothing",
        command("report", "{here}"),
        SystemExit,
        r"expected a recipe's output folder.*run it again",
    ),
    Case("report of a file", command("report", __file__), SystemExit, r"found in .*recipes.py: a file"),
    Case("unknown command", command("trian"), SystemExit, r"2"),
)
