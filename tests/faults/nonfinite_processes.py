"""NaN in one of two processes, in every way that concerns both; each writes what became of it.

    torchrun --nproc_per_node 2 nonfinite_processes.py FOLDER

Not a test itself: test_nonfinite_processes.py starts it.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from broken_toys import STEPS, FaultyLoss
from safetensors.torch import save_file
from toy_models import toy_bert
from training_toys import logged, trainer_of, weights_of

from hfdistill import FrozenTeacher, Objective, SoftTargetLoss
from hfdistill.representations import Needs, Representations

CASES: dict[str, dict[str, Any]] = {
    "stop": {"gradient_accumulation_steps": 2},
    "skip": {"on_nonfinite": "skip", "optim": "adamw_torch"},
    "waiting": {"optim": "adamw_torch_fused", "logging_steps": STEPS},
    "teacher": {"logging_steps": 2},
    "teacher of no term": {"logging_steps": 2},
    "sound": {"max_steps": 1, "optim": "adamw_torch_fused"},
}


class LateTeacher(FrozenTeacher):
    """Shows NaN in the second process from its second pass on.

    Args:
        unread: in a hidden state that no loss looks at.
    """

    passes = 0
    unread = False

    def represent(self, inputs: Mapping[str, Any], needs: Needs) -> Representations:
        """See Teacher.represent."""
        shown, self.passes = super().represent(inputs, needs), self.passes + 1
        if torch.distributed.get_rank() == 1 and self.passes > 1:
            broken = torch.full((len(inputs["input_ids"]), 1, 1), torch.nan)
            if self.unread:
                shown.hidden_states = {**shown.hidden_states, 3: broken}
            elif shown.logits is not None:
                shown.logits = shown.logits * torch.nan
        return shown


def run(folder: Path) -> None:
    """Train each case, and write the error, the log and the weights that this process ends with."""
    for name, changes in CASES.items():
        teacher = LateTeacher(toy_bert(layers=4, seed=1)) if "teacher" in name else toy_bert(layers=4, seed=1)
        if isinstance(teacher, LateTeacher):
            teacher.unread = "no term" in name
        at = 1 if name in ("stop", "skip", "waiting") else STEPS + 1
        objective = Objective(kd=SoftTargetLoss(), odd=FaultyLoss(at, process=1))
        torch.manual_seed(5)
        changes = {"max_steps": STEPS, "per_device_train_batch_size": 2} | changes
        trainer = trainer_of(folder / name, objective, teacher=teacher, **changes)
        trainer._numbers.at_once = name != "waiting"  # there as on an accelerator: nothing is read before the log
        if trainer.accelerator.num_processes != 2:
            raise RuntimeError(f"{trainer.accelerator.num_processes} connected processes, expected 2")
        error = None
        try:
            trainer.train()
        except (RuntimeError, ValueError) as raised:
            error = [type(raised).__name__, str(raised)]
        told = {"error": error, "step": trainer.state.global_step, "log": logged(trainer)}
        rank = trainer.args.process_index
        (folder / f"{name}-{rank}.json").write_text(json.dumps(told), encoding="utf-8")
        save_file(weights_of(trainer.student), folder / f"{name}-{rank}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run(Path(sys.argv[1]))
