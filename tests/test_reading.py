import re
from html import unescape
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import BatchFeature

from fundus_lib import model as models
from fundus_lib import reading
from fundus_lib.answers import explain_answer, extract_answer
from fundus_lib.generation import option_scores

SEEN, OPTIONS = ("microaneurysm", "flame-shaped hemorrhage", "hard exudate"), {"A": "No DR", "B": "NPDR", "C": "PDR"}


def read(page: str) -> tuple[str, set[str]]:
    """The text of HTML and the names of its tags: every bare "<" starts one."""
    return unescape(re.sub(r"<[^<>]*>", "", page)), {*re.findall(r"</?([^\s>]*)", page)}


def toy(weight: float):  # of 2 x 3 patches the last one decides, by the spread of its red
    def processor(images, text, **_):
        red = torch.tensor([np.asarray(image)[20:, 40:, 0].std() for (image,) in images])
        ids = torch.tensor([[0, 1][:1 + ("yes" in one)] for one in text])
        return BatchFeature({"input_ids": ids, "attention_mask": torch.ones_like(ids), "red": red})

    def model(input_ids, attention_mask, red, logits_to_keep):
        return SimpleNamespace(logits=torch.stack([torch.zeros(len(red)), weight * red], 1)[:, None].expand(-1, 2, -1))

    processor.apply_chat_template, model.device = lambda *_, **__: "asked: ", "cpu"
    return model, processor


def test_the_heat_peaks_where_the_answer_comes_from_and_nowhere_else():
    noise = np.random.default_rng(0).integers(30, 255, (40, 60, 3), dtype=np.uint8)
    heat = reading.occlusion_map(*toy(0.1), Image.fromarray(noise), "?", "yes", patch=1 / 2, batch_size=4)
    assert heat.shape == (2, 3) and np.count_nonzero(heat) == 1
    assert heat[1, 2] == pytest.approx(np.log(2), abs=0.01)  # from sure (a spread of 65: odds of e^6.5) to even odds
    assert not reading.occlusion_map(*toy(0.0), Image.fromarray(noise), "?", "yes", patch=1 / 2).any()


def test_the_heat_is_the_drop_of_the_answers_probability(tiny_base):
    model, processor = models.load_model(tiny_base).eval(), models.load_processor(tiny_base)
    pixels = np.random.default_rng(1).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    heat = reading.occlusion_map(model, processor, Image.fromarray(pixels), "Drusen?", "zq Drusen", patch=1 / 2)
    (hidden := pixels.copy())[24:, :24] = pixels[24:, :24].mean((0, 1)).round()
    whole, less = (option_scores(model, processor, Image.fromarray(shown), "Drusen?", ["zq Drusen"])[0]
                   for shown in (pixels, hidden))
    drop = len(processor.tokenizer("zq Drusen")["input_ids"]) * (whole - less)  # scores are means over the tokens
    assert heat[1, 0] == pytest.approx(drop, abs=1e-4) and abs(drop) > 1e-3  # float32


def test_the_pointing_game_by_hand():
    eye = Image.fromarray(np.uint8([[0] * 10 + [100] * 30] * 40))  # 4 x 4 patches, the first column black surround
    mask, heat = np.zeros((40, 40), bool), np.zeros((4, 4))
    mask[5:15, 12:18], heat[0, 0], heat[1, 1], heat[3, 3] = True, 9, 2, 1  # on two patches
    assert reading.heat_on_mask(heat, mask, eye) == {"hit": 1, "chance": 2 / 12, "inside": 1, "outside": 0.1}
    assert reading.heat_on_mask(heat.T[::-1], mask, eye)["hit"] == 0
    assert all(np.isnan([*reading.heat_on_mask(heat, mask & False, eye).values()]))


@pytest.mark.parametrize(("said", "verdict"), [
    ("Microaneurysms are seen", "supported"), ("There is a retinal hemorrhage", "supported"),  # the parent of flames
    ("Massive hard exudate is seen", "unsupported"), ("Drusen are present", "unsupported"),    # a child, a stranger
    ("No hard exudate", "denied"), ("Possible drusen", "open"), ("If drusen were seen, it would be AMD", "open")])
def test_each_mention_has_its_colour(said, verdict):
    trace = f"<think> {said}. It fits diabetic macular edema. </think> <answer> Drusen </answer>"
    table = reading.mention_table(trace, SEEN, "CFP")  # neither the disease's edema nor the answer is a mention
    assert table["verdict"].tolist() == [verdict] and table["words"][0] in said
    page, (colour, line, _) = reading.mention_html(trace, SEEN, "CFP"), reading.VERDICTS[verdict]
    assert page.count("<span") == 1 and f"background:{colour}" in page and f"underline {line} {colour}" in page


WORDS = st.sampled_from(["drusen", "no ", "fluid", "microaneurysm", "<script>alert(1)</script>", "&lt;", '"', "\n",
                         "<answer>", "hard <b>exudate</b>", "possible ", "'><img src=x onerror=y>", ". "])


@given(st.lists(WORDS | st.text(max_size=5), max_size=12).map("".join))
def test_the_text_is_kept_and_nothing_in_it_is_markup(trace):
    text, tags = read(reading.mention_html(trace, SEEN, "OCT"))
    assert text == trace and tags <= {"div", "span"}


def test_pages_show_rewards_answers_and_reasons_and_run_no_script(images):
    bad, own, picture = "<script>x</script> drusen & PDR", {"div", "span", "b"}, Image.open(images[0])
    rows = pd.DataFrame({"image": [picture] * 2, "prompt": bad, "findings": [SEEN] * 2, "modality": "CFP", "text": bad,
                         "advantage": [0.7, -0.7], "answer_reward": 1, "process_reward": [0.5, None],
                         "judgement": ["tenuous", None], "objections": ["<b>", ""]})
    (text, tags), sources = read(page := reading.rollout_html(rows)), re.findall(r'src="([^"]*)', page)
    assert "advantage +0.70answer 1, process 0.5; tenuous; <b>" in text and "process none" in text
    assert text.count(bad) == 3
    shaped = read(reading.rollout_html(rows.assign(shaped_advantage=0.9, uncertainty=0.25, omega=-0.4)))[0]
    assert "advantage +0.70, shaped advantage +0.90, uncertainty 0.25, omega -0.40answer" in shaped
    assert tags == own | {"img", "table", "tr", "td", "br"} and [s[:15] for s in sources] == ["data:image/jpeg"]
    case = SimpleNamespace(image=picture, question=bad, options=OPTIONS, kind="single", answer="C", answer_text="PDR")
    figure, page = reading.case_page(case, f"<answer>{bad}</answer>", SEEN, "CFP", np.eye(2), {"scar": np.eye(48) > 0})
    assert "The answer: C (ok), right." in read(page)[0] and bad in read(page)[0] and read(page)[1] == own
    assert [len(ax.images) for ax in figure.axes[:2]] == [1, 2]  # the photograph, and again with the heat over it


@pytest.mark.parametrize(("response", "rule", "words", "marks"), [
    ("<think>A?</think> <answer> PDR </answer>", "answer tag", "PDR", "«C»"), ("\\boxed{B}", "box", "B", "‹B›"),
    ("<answer>Glaucoma</answer>", "answer tag", "Glaucoma", "«»"), ('{"answer": "C"}', "JSON", '"C"', "‹C›"),
    ("<think>so <answer>B</answer>", "answer tag in the thinking", "B", "‹B›"), ("", "text", "", ""),
    ("It is large. The answer is not A but B.", "final statement", "not A but B", "‹A› ‹B›"),
    ("<think>The answer is B.</think>", "last statement in the thinking", "B.", "‹B›"),
    ("Severe, hence PDR.", "text", "Severe, hence PDR.", "«C»")])
def test_why_an_answer_was_read(response, rule, words, marks):
    assert explain_answer(response, OPTIONS) == (extract_answer(response, OPTIONS), rule, words, marks)
