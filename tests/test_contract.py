"""The public names that users build on, and what importing them costs."""

import importlib
import subprocess
import sys

import pytest

NAMES = {
    "data": ["load_dataset"], "answers": ["extract_answer", "parse_strict"], "lexicon": ["find_mentions"],
    "knowledge": ["acquire", "vocabulary"], "voting": ["majority_vote"], "traces": ["check_trace"],
    "rewards": ["judge_by_rules", "answer_reward", "format_reward", "process_reward"],
    "uadt": ["shape_advantages", "UADTGRPOTrainer"], "evaluation": ["funbench_scores"],
}


@pytest.mark.parametrize("module, names", NAMES.items(), ids=str)
def test_the_public_names_are_there_and_explained(module, names):
    for name in names:
        assert getattr(importlib.import_module(f"fundus_lib.{module}"), name).__doc__


def test_reading_data_and_answers_imports_no_deep_learning():
    code = ("import sys, fundus_lib.data, fundus_lib.answers, fundus_lib.evaluation, fundus_lib.runs; "
            "print(*{'torch', 'transformers', 'trl', 'datasets', 'seaborn'} & set(sys.modules))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
