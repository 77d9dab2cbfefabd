"""Profiles: strict, frozen, complete, and honest about where the paper's values come from."""

import math
import subprocess
import sys

import pytest
import yaml
from pydantic import ValidationError

from fundus_lib import settings

PROFILES = ("smoke", "cpu", "weak", "oracle", "single_gpu", "paper")


@pytest.fixture
def profile(tmp_path):
    """profile(edit) writes a copy of smoke.yaml, edited, as profiles 'mine' and returns its folder."""
    def write(edit):
        content = yaml.safe_load((settings.PROFILES / "smoke.yaml").read_text(encoding="utf-8"))
        edit(content)
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        return tmp_path
    return write


def refused(folder, name="mine"):
    with pytest.raises(settings.SettingsError) as error:
        settings.load(name, folder=folder)
    return str(error.value)


@pytest.mark.parametrize("name", PROFILES)
def test_every_shipped_profile_loads_and_knows_its_name(name):
    loaded = settings.load(name)
    assert loaded.profile == name
    assert loaded.voting.min_votes <= loaded.voting.rollouts, "a finding nobody could ever keep"
    if loaded.base_model.source == "train":
        assert [key for key, value in loaded.base_model if value is None and key != "hub_id"] == []


def test_a_profile_like_another_changes_what_it_names_and_nothing_else(profile):
    folder = profile(lambda content: content["data"].update(difficulty=0.25))
    (folder / "near.yaml").write_text("like: mine\ndata: {difficulty: 0.5}\nsetups: [E]\n")
    near, mine = settings.load("near", folder=folder), settings.load("mine", folder=folder)
    assert (mine.data.difficulty, near.data.difficulty, near.setups) == (0.25, 0.5, ("E",))
    assert near == mine.model_copy(update={"profile": "near", "setups": ("E",), "data": near.data})
    (folder / "near.yaml").write_text("like: mine\ndatum: {difficulty: 0.5}\n")
    settings.load.cache_clear()
    assert "datum" in refused(folder, "near")
    (folder / "near.yaml").write_text("like: mien\n")
    settings.load.cache_clear()
    assert "mien" in refused(folder, "near")


def test_the_paper_profile_holds_the_papers_numbers():
    paper = settings.load("paper")
    assert paper.base_model.hub_id == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert (paper.sft.epochs, paper.sft.learning_rate) == (2, 1e-5)
    assert (paper.grpo.rollouts, paper.grpo.temperature) == (4, 1)
    assert (paper.grpo.learning_rate, paper.grpo.kl_beta) == (1e-6, 0.01)
    assert paper.grpo.steps == math.ceil(8 * 80_115 / paper.grpo.prompts_per_step), "8 epochs over the kept traces"
    assert (paper.voting.rollouts, paper.voting.min_votes) == (5, 3)


def test_smoke_uses_one_seed_like_the_notebooks():
    """The notebooks' own SEEDS is 1: with another number a notebook opened by hand would not find what make made."""
    assert settings.load("smoke").seeds == 1


def test_nothing_changes_after_loading():
    with pytest.raises(ValidationError, match="frozen"):
        settings.load("smoke").voting.rollouts = 7


def test_a_typo_suggests_the_right_name(profile):
    message = refused(profile(lambda c: c["voting"].update(rolouts=5)))
    assert "voting.rolouts" in message and "did you mean rollouts?" in message and "mine.yaml" in message
    assert "did you mean grpo?" in refused(profile(lambda c: c.update(grop={})))


@pytest.mark.parametrize("edit, complaint", [
    (lambda c: c["sft"].pop("epochs"), "sft.epochs: Field required"),
    (lambda c: c.pop("uadt"), "uadt: Field required"),
    (lambda c: c["sft"].update(epochs=2.5), "sft.epochs"),
    (lambda c: c["sft"].update(epochs=True), "sft.epochs"),
    (lambda c: c["sft"].update(learning_rate="1e-5"), "write 1.0e-5, not 1e-5"),
    (lambda c: c["sft"].update(learning_rate=float("nan")), "sft.learning_rate"),
    (lambda c: c["rewards"].update(wrong_plausible=1.0), "rewards.wrong_plausible 1 x process_weight 1 = 1 must be"),
    (lambda c: c["rewards"].update(process_weight=2.0), "= 1 must be below answer_weight 1"),
    (lambda c: c["uadt"].update(strength=1.0), "uadt.strength"),
    (lambda c: c.update(setups=["A", "Z"]), "setups.1"),
    (lambda c: c.update(setups=[]), "setups"),
    (lambda c: c.update(seeds=0), "seeds"),
    (lambda c: c.update(voting=3), "voting"),
])
def test_what_cannot_work_is_refused_by_name(profile, edit, complaint):
    assert complaint in refused(profile(edit))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "data: [", "just words"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    assert "not a YAML mapping" in refused(tmp_path)


def test_an_unknown_profile_lists_the_known_ones():
    message = refused(settings.PROFILES, "cpuu")
    assert "did you mean cpu?" in message and all(name in message for name in PROFILES)


def test_seeds_from_the_command_line_replace_the_profiles():
    assert settings.load("smoke", seeds=5).seeds == 5
    with pytest.raises(settings.SettingsError, match="seeds"):
        settings.load("smoke", seeds=0)


def test_every_setting_says_where_the_papers_value_comes_from():
    tags = {tag for _, tag in settings.flat(settings.load("paper")).values()}
    assert tags == {settings.STATED, settings.DERIVED, settings.GUESS, settings.OURS}


def test_the_table_marks_differences_and_guesses():
    """cpu: 8 rollouts against the stated 4 (bold); learning rate against a guess; votes as in the paper (plain)."""
    styler = settings.table(settings.load("cpu"), {"grpo", "voting", "data"})
    shown = styler.data.set_index("setting")
    assert shown.loc["grpo.rollouts"].tolist() == ["8", "4"]
    assert shown.loc["grpo.learning_rate", "paper"] == "1e-06 (not in the paper)"
    assert shown.loc["grpo.steps", "paper"] == "2504 (derived)"
    assert shown.loc["data.world_seed", "paper"] == "- (ours, no counterpart)"
    rule = styler.to_html().split("}")[0]          # one CSS rule lists the cells in bold
    bold = {name for row, name in enumerate(shown.index) if f"row{row}_" in rule}
    assert "grpo.rollouts" in bold and "voting.rollouts" not in bold
    assert "data.world_seed" not in bold, "no counterpart, nothing to differ from"


def test_runner_and_settings_import_without_the_heavy_packages():
    """`make reproduce` with nothing to do has to answer at once."""
    heavy = "torch transformers trl datasets pandas numpy seaborn papermill nbformat IPython".split()
    code = f"import fundus_lib.runs, sys; print(*[name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []
