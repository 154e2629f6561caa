"""Turns text into scores, and scores into preferences. Knows no tensors; a model is a callable."""

from judge import metrics
from judge.canaries import canary_items, canary_scores
from judge.compare import (
    compare_in_parts,
    compare_responses,
    compare_scores,
    parse_choice,
    scores_in_parts,
)
from judge.complete import Complete, Completion
from judge.eft import agreeing, make_eft, rebalance
from judge.length import length_controlled
from judge.pairs import answer_pairs
from judge.ranked import ranked_items, ranked_sets
from judge.rubric import Rubric, load_rubric
from judge.score import judge_in_parts, judge_responses, mean_score, parse_score

__all__ = [
    "Complete",
    "Completion",
    "Rubric",
    "agreeing",
    "answer_pairs",
    "canary_items",
    "canary_scores",
    "compare_in_parts",
    "compare_responses",
    "compare_scores",
    "judge_in_parts",
    "judge_responses",
    "length_controlled",
    "load_rubric",
    "make_eft",
    "mean_score",
    "metrics",
    "parse_choice",
    "parse_score",
    "ranked_items",
    "ranked_sets",
    "rebalance",
    "scores_in_parts",
]
