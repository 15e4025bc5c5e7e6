"""Distil an image classifier: teacher, control and presets over seeds, ending in one table.

    python recipes/run_image_classification.py --dataset my/images --teacher my/fine-tuned-teacher --student_layers 3 \
        --arms control kd deit rkd at --seeds 0 1 2 --augmentation crop_flip --num_train_epochs 20 \
        --per_device_train_batch_size 128 --learning_rate 5e-4 --warmup_steps 0.1 --output_dir outputs/images

    python recipes/run_image_classification.py recipes/configs/kd_cifar10.yaml

--dataset takes a name on the hub, a folder of parquet files (train.parquet, test.parquet), or a folder with one folder
of images per class (train/<class>/..., validation/<class>/...). Without --teacher, --teacher_body names the model that
is trained into one first; its weights may be random. --student names a student of any family of image classifiers;
without it the student is cut from the teacher, with --student_patch_size, --student_image_size and
--student_distillation_token where wanted. Every option of TrainingArguments is accepted; beside a GPU,
--dataloader_num_workers lets the processor decode images ahead. Results: <output_dir>/results.json and results.md;
students in <output_dir>/<arm>/seed-<seed>.
"""

from hfdistill import run_recipe


def main() -> None:
    """Parse the command line, or one configuration file, and run."""
    print(run_recipe(recipe="image-classification").table())


if __name__ == "__main__":
    main()
