"""Publishing a student on the Hugging Face hub, from its folder or from the trainer that made it.

What goes up, and how, stands in `hub_repository`. The folder that is pushed is only read, so that a push that is cut
off can be repeated.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, HfApi
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from hfdistill.checkpoints.trainer import CheckpointingTrainer
from hfdistill.publishing.folder import CARD, StudentFolder
from hfdistill.publishing.record import write_training_record
from hfdistill.teachers import Teacher

if TYPE_CHECKING:
    from hfdistill.publishing.repository import HubRepository  # imported where something is published

logger = logging.getLogger(__name__)


def push_student(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    token: str | None = None,
    merge_adapter: bool = False,
) -> CommitInfo:
    """Push a saved student with its processor, card and results to the hub, in one commit.

    The card is written from the records in the folder unless README.md is somebody's own. Files of an earlier student
    that would be loaded with this one (its weights, an adapter) are removed by the same commit; a card that was edited
    on the hub stays.

    Args:
        folder: a student that the trainer or save_pretrained saved.
        repo_id: the repository, "name" or "user/name"; made where it is not there.
        private: make it private; None: as the account's default is.
        revision: branch to commit to, made where it is not there; None: main.
        create_pr: open a pull request instead of committing.
        commit_message: of the commit.
        token: of the hub; None: that of `hf auth login` or HF_TOKEN.
        merge_adapter: push the model with its adapter of PEFT merged in, instead of the adapter.

    Returns:
        The commit: `commit_url`, and `pr_url` of a pull request.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: an invalid name; a folder without a student; an adapter whose base nobody else can load; a
            repository that is public and should be private; metadata of the card that the hub refuses.
        PermissionError: no login, or one that may not write there.
        ConnectionError: the hub cannot be reached, or the connection broke; nothing was published then.
    """
    from hfdistill.publishing.repository import HubRepository

    message = commit_message or HubRepository.commit_message
    repository = HubRepository(repo_id, private, revision, create_pr, message, token)
    return repository.push(StudentFolder.read(folder), merge_adapter)


class PublishingTrainer(CheckpointingTrainer):
    """A Trainer that saves a record beside its student, writes its card from it, and publishes both as `push_student`.

    What `push_to_hub=True` pushes while training goes by the same list of files.
    """

    teacher: Teacher | None = None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        card = folder / CARD
        before = card.read_bytes() if card.is_file() else None
        super()._save(output_dir, state_dict)
        if before is not None and self.args.should_save:
            card.write_bytes(before)  # PEFT adds lines of its own to any card that it finds
        if self.args.should_save and not re.fullmatch(r"checkpoint-\d+", folder.name):
            write_training_record(self, folder)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository where it is not there; see Trainer.init_hf_repo.

        Raises:
            ValueError: an invalid name, or a `hub_strategy` that would publish pickles.
            PermissionError: see push_student.
            ConnectionError: see push_student.
        """
        if not self.is_world_process_zero():
            return
        strategy = HubStrategy(self.args.hub_strategy)
        if self.args.push_to_hub and strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise ValueError(
                f"hub_strategy={strategy.value!r} publishes optimizer and random states, which are "
                "pickles and run code where they are loaded. Use 'every_save' or 'end', which publish the student "
                "alone, and resume from the local checkpoint."
            )
        name = self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name
        repository = self._repository(name, token, private, None)  # a branch is made by the push
        from hfdistill.publishing.repository import explained

        with explained(name):
            self.hub_model_id = repository.prepare(repository.api())  # type: ignore[assignment]  # begins as None
        self.push_in_progress = None

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the card of the student saved in the output folder; see write_model_card and Trainer's own.

        The network is not asked. Task, data and figures come from the records: `tasks`, `dataset` and `dataset_args`
        are not written, and a warning says so.
        """
        if not self.is_world_process_zero():
            return
        if tasks or dataset or dataset_args:
            logger.warning("tasks, dataset and dataset_args are not written: the card tells what was recorded.")
        from hfdistill.publishing.card import write_model_card

        write_model_card(
            str(self.args.output_dir),
            language=language,
            license=license,
            tags=_listed(tags),
            model_name=model_name,
            base_model=finetuned_from,
            datasets=_listed(dataset_tags),
        )

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        create_pr: bool = False,
        merge_adapter: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Save the student in the output folder and push it with its processor and card, in one commit.

        Args:
            commit_message: of the commit.
            blocking: wait for the upload; else a Future is returned.
            token: of the hub; None: `hub_token`, or that of `hf auth login`.
            revision: branch, made where it is not there; None: `hub_revision`.
            private: of a repository that is made; None: `hub_private_repo`.
            create_pr: open a pull request instead of committing.
            merge_adapter: push the model with its adapter of PEFT merged in, instead of the adapter.
            kwargs: of create_model_card.

        Returns:
            The commit, or its Future; None on all processes but the first.

        Raises:
            ValueError: see push_student.
            PermissionError: see push_student.
            ConnectionError: see push_student.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        repository = self._repository(str(self.hub_model_id), token, private, revision or self.args.hub_revision)
        repository = replace(repository, create_pr=create_pr, commit_message=commit_message or "End of training")
        model = self.accelerator.unwrap_model(self.model) if merge_adapter else None
        push = partial(repository.push, StudentFolder.read(str(self.args.output_dir)), merge_adapter, model)
        return push() if blocking else self._in_background(push)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        running = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if running and not self.args.hub_always_push:
            return
        self._finish_current_push()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        folder = Path(str(self.args.output_dir))
        try:
            files = StudentFolder.read(checkpoint_folder).published
        except ValueError as error:  # a checkpoint in shards has no student, and training must not end for that
            logger.warning("Nothing was pushed of this checkpoint: %s", error)
            return
        for path in files:
            shutil.copy(path, folder / path.name)  # the checkpoint may be gone before it is uploaded
        write_training_record(self, folder)
        repository = self._repository(str(self.hub_model_id), None, None, self.args.hub_revision)
        repository = replace(repository, commit_message=f"Training in progress, step {self.state.global_step}")
        self._in_background(partial(repository.push, StudentFolder.read(folder)))

    def _finish_current_push(self) -> None:
        """Wait for the push that runs, if any, and say what became of one that failed: nobody else asks it."""
        super()._finish_current_push()
        progress, self.push_in_progress = vars(self).get("push_in_progress"), None
        for job in progress.jobs if progress is not None else ():
            if job.exception() is not None:
                logger.warning(
                    "A push during training failed, and the next one goes on from here: %s", job.exception()
                )

    def _in_background(self, push: Callable[[], CommitInfo]) -> Future[CommitInfo]:
        job: Future[CommitInfo] = HfApi().run_as_future(push)
        running: Any = PushInProgress([job])  # type: ignore[arg-type]  # its annotation lacks the list
        self.push_in_progress = running
        return job

    def _repository(self, name: str, token: str | None, private: bool | None, revision: str | None) -> HubRepository:
        from hfdistill.publishing.repository import HubRepository

        private = self.args.hub_private_repo if private is None else private
        return HubRepository(name, private, revision, token=token or self.args.hub_token)


def _listed(words: str | Sequence[str] | None) -> list[str]:
    return [words] if isinstance(words, str) else list(words or ())
