"""Distil a GLUE classifier: teacher, control and presets over seeds, ending in one table.

    python recipes/run_glue.py --task sst2 --teacher my/fine-tuned-teacher --student_layers 3 \
        --arms control kd pkd tinybert lrc_bert minilm --seeds 0 1 2 --train_rows 12000 \
        --num_train_epochs 2 --per_device_train_batch_size 32 --learning_rate 1e-4 --warmup_steps 0.1 \
        --output_dir outputs/sst2

    python recipes/run_glue.py recipes/configs/tinybert_sst2.yaml

Without --teacher, --teacher_body names the model that is fine-tuned into one first. --data_dir takes a local folder of
parquet files (<data_dir>/<task>/train.parquet, validation.parquet) instead of the hub. Every option of
TrainingArguments is accepted; rows are grouped by length, with dynamic padding, unless --train_sampling_strategy says
otherwise. Results: <output_dir>/results.json and results.md; students in <output_dir>/<arm>/seed-<seed>.
"""

from hfdistill import run_recipe


def main() -> None:
    """Parse the command line, or one configuration file, and run."""
    print(run_recipe().table())


if __name__ == "__main__":
    main()
