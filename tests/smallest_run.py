"""The smallest run of `train.py` that has every stage, and some steps of every training."""

SMALLEST = ["--preset", "smoke"]
for assignment in (
    "prompts.count=16", "prompts.round_size=64", "sft.epochs=4", "dpo.epochs=4", "dpo.max_steps=3",
    "dpo.batch_size=8", "evaluation.instructions=6", "evaluation.ranked=3",
):  # fmt: skip
    SMALLEST += ["--set", assignment]
