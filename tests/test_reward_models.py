"""Sequence classifiers as rewards."""

from __future__ import annotations

import pytest
import torch
from tokenizers import processors
from transformers import AutoConfig, AutoModelForSequenceClassification

from rl4lm.errors import RewardError
from rl4lm.rewarding.lookup import resolve_rewards
from rl4lm.rewarding.models import RewardModel, listed, names_model
from rl4lm.workbench.bench import score_rows

PAD = 95
PROMPTS = ["t5 t6", "t7", "t5 t6 t7 t8 t9 t10", "t11"]
COMPLETIONS = [" t20", " t21 t22 t23", " t24", " t25 t26 t27 t28 t29 t30 t31 t32"]
TEMPLATE = (
    "t93{% for m in messages %} t{{ 40 if m['role'] == 'user' else 41 }} {{ m['content'] }}"
    "{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer(tiny):
    made = tiny.build_tokenizer()
    made.pad_token, made.bos_token, made.eos_token = f"t{PAD}", "t93", "t94"
    made.chat_template = TEMPLATE
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="t93 $A", special_tokens=[("t93", 93)]
    )
    return made


@pytest.fixture(scope="module")
def classifier(tiny):
    """A random classifier of an architecture."""

    def build(architecture="llama", labels=1, pad=PAD, **settings):
        torch.manual_seed(3)
        config = AutoConfig.for_model(
            architecture,
            **{**tiny.SETTINGS[architecture], **settings},
            vocab_size=tiny.VOCABULARY,
            pad_token_id=pad,
            num_labels=labels,
        )
        model = AutoModelForSequenceClassification.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
        return model.eval()

    return build


@pytest.fixture
def folder(tmp_path, classifier, tokenizer):
    """A folder with a classifier and its tokenizer."""

    def save(model=None, name="judge", **settings):
        (model or classifier(**settings)).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


def asked(reward, prompts=PROMPTS, completions=COMPLETIONS):
    logged = {}
    values = reward(prompts=prompts, completions=completions, log_metric=logged.__setitem__)
    return values, logged


def alone(model, tokenizer, text, **settings):
    """The logits of one text, by the model itself and without padding."""
    ids = tokenizer(text, **settings)["input_ids"]
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_a_score_is_the_models_logit_whatever_else_is_in_the_batch(
    classifier, tokenizer, tiny, architecture
):
    model = tiny.exact_norms(classifier(architecture).double())
    expected = [
        float(alone(model, tokenizer, p + c)[0]) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    found, logged = asked(RewardModel.of(model, tokenizer))
    # Read out in float32; what padding would do is far larger.
    assert found == pytest.approx(expected, abs=1e-6)
    assert len({round(value, 3) for value in found}) == len(found)
    assert logged == {"texts_cut": 0}
    backwards = asked(RewardModel.of(model, tokenizer), PROMPTS[::-1], COMPLETIONS[::-1])[0]
    assert backwards[::-1] == pytest.approx(expected, abs=1e-6)


def test_a_model_that_sees_its_padding_would_score_otherwise(classifier, tokenizer):
    """The negative control: padded on the right and unmasked, the score is another one."""
    model = classifier("bert")
    ids = tokenizer(PROMPTS[0] + COMPLETIONS[0])["input_ids"]
    with torch.no_grad():
        seen = model(input_ids=torch.tensor([ids + [PAD] * 4])).logits[0, 0]
    found = asked(RewardModel.of(model, tokenizer))[0][0]
    assert abs(found - float(seen)) > 1e-3


def test_the_side_on_which_a_tokenizer_pads_does_not_matter(classifier, tokenizer):
    model = classifier()
    right = asked(RewardModel.of(model, tokenizer))[0]
    tokenizer.padding_side = "left"
    try:
        assert asked(RewardModel.of(model, tokenizer))[0] == right
    finally:
        tokenizer.padding_side = "right"


def test_a_model_without_a_padding_token_reads_rows_one_by_one(classifier, tiny):
    model, plain = classifier(pad=None), tiny.build_tokenizer()
    plain.pad_token = None
    found = asked(RewardModel.of(model, plain))[0]
    expected = [
        float(alone(model, plain, p + c)[0]) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    assert found == pytest.approx(expected, abs=1e-5)


def test_messages_go_through_the_chat_template_with_one_beginning(classifier, tokenizer):
    model = classifier()
    prompts = [[{"role": "user", "content": "t5 t6"}]]
    completions = [[{"role": "assistant", "content": "t20"}]]
    found = asked(RewardModel.of(model, tokenizer), prompts, completions)[0]
    once = alone(model, tokenizer, "t93 t40 t5 t6 t41 t20", add_special_tokens=False)
    twice = alone(model, tokenizer, "t93 t40 t5 t6 t41 t20")
    assert found == pytest.approx([float(once[0])], abs=1e-6)
    assert abs(float(once[0] - twice[0])) > 1e-3


def test_messages_are_scored_as_trl_scores_them(classifier, tokenizer):
    model = classifier()
    prompts = [[{"role": "user", "content": text}] for text in PROMPTS]
    replies = [[{"role": "assistant", "content": text.strip()}] for text in COMPLETIONS]
    texts = [
        tokenizer.apply_chat_template(p + c, tokenize=False)
        for p, c in zip(prompts, replies, strict=True)
    ]
    inputs = tokenizer(
        text=texts,
        return_tensors="pt",
        padding=True,
        padding_side="right",
        add_special_tokens=False,
    )
    with torch.inference_mode():
        theirs = model(inputs["input_ids"], inputs["attention_mask"]).logits[:, 0].tolist()
    assert asked(RewardModel.of(model, tokenizer), prompts, replies)[0] == pytest.approx(
        theirs, abs=1e-5
    )


def test_a_text_that_is_too_long_loses_its_beginning_and_is_counted(classifier, tokenizer):
    model = classifier(max_position_embeddings=8)
    long = " ".join(f"t{i}" for i in range(20, 40))
    found, logged = asked(RewardModel.of(model, tokenizer), ["t5", "t5"], [" t20", f" {long}"])
    cut = alone(model, tokenizer, "t93 " + " ".join(long.split()[-7:]), add_special_tokens=False)
    assert found[1] == pytest.approx(float(cut[0]), abs=1e-5)
    assert logged == {"texts_cut": 1}


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("good", lambda logits: logits.softmax(0)[2]),
        ("2", lambda logits: logits.softmax(0)[2]),
        ("bad", lambda logits: logits.softmax(0)[0]),
        ("good,logit", lambda logits: logits[2]),
    ],
)
def test_one_of_several_labels_is_the_reward(classifier, tokenizer, folder, label, expected):
    model = classifier(labels=3)
    model.config.id2label = {0: "bad", 1: "so so", 2: "good"}
    (reward,) = resolve_rewards([f"{folder(model)}#{label}"])
    assert reward.name == f"judge-{label.replace(',', '-')}"
    wanted = float(expected(alone(model, tokenizer, PROMPTS[0] + COMPLETIONS[0])))
    assert asked(reward.function)[0][0] == pytest.approx(wanted, abs=1e-5)


def test_labels_that_do_not_exclude_one_another_have_a_probability_each(
    classifier, tokenizer, folder
):
    model = classifier(labels=2)
    model.config.problem_type = "multi_label_classification"
    (reward,) = resolve_rewards([f"{folder(model)}#1"])
    wanted = float(alone(model, tokenizer, PROMPTS[0] + COMPLETIONS[0])[1].sigmoid())
    assert asked(reward.function)[0][0] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(("label", "said"), [("", "say which one"), ("#good", "no label 'good'")])
def test_a_label_that_leaves_open_which_output_is_meant_is_refused(folder, label, said):
    (reward,) = resolve_rewards([folder(labels=2) + label])
    with pytest.raises(RewardError, match=said):
        asked(reward.function)


def test_a_causal_language_model_is_refused_by_name_and_as_an_object(tiny, tmp_path):
    model = tiny.build_model("llama")
    model.save_pretrained(tmp_path)
    with pytest.raises(RewardError, match="LlamaForCausalLM, not a sequence classifier"):
        resolve_rewards([str(tmp_path)])
    with pytest.raises(RewardError, match="LlamaForCausalLM, not a sequence classifier"):
        listed(model)


def test_a_classifier_whose_head_is_not_there_is_refused(classifier, folder):
    place = folder()
    model = AutoModelForSequenceClassification.from_pretrained(place)
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("score")}
    model.save_pretrained(place, state_dict=weights)
    with pytest.raises(RewardError, match="lacks weights"):
        asked(RewardModel(place))


def test_a_tokenizer_of_another_model_is_refused(classifier, tiny):
    other = tiny.build_tokenizer(200)
    with pytest.raises(RewardError, match="makes token id 150, and the model knows ids below 97"):
        asked(RewardModel.of(classifier(), other), ["t150"], [" t5"])


def test_messages_without_a_chat_template_are_refused(classifier, tiny):
    chat = [[{"role": "user", "content": "t5"}]]
    with pytest.raises(RewardError, match="no chat template"):
        asked(RewardModel.of(classifier(), tiny.build_tokenizer()), chat, chat)


def test_a_folder_that_is_not_there_or_holds_no_model_is_refused_before_torch(tmp_path):
    with pytest.raises(RewardError, match="there is no folder"):
        resolve_rewards(["./no_such_judge"])
    with pytest.raises(RewardError, match=r"no config\.json"):
        resolve_rewards([str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "is_model"),
    [
        ("rewards.arithmetic:exact_answer", False),
        ("rewards.arithmetic.exact_answer", False),
        ("path/to/file.py:function", False),
        ("path/to/file.py", False),
        ("owner/judge", True),
        ("owner/judge#good,logit", True),
        ("./judge", True),
        ("/models/judge#LABEL:1", True),
    ],
)
def test_a_model_is_told_from_a_function_by_its_name(name, is_model):
    assert names_model(name) is is_model


def test_the_same_name_twice_is_one_model(folder):
    place = folder()
    (one,), (other,) = resolve_rewards([place]), resolve_rewards([place])
    assert one.function is other.function
    assert one.asked_as is None  # it runs in this process


def test_there_must_be_a_tokenizer_or_none_for_each_reward(classifier, tokenizer):
    with pytest.raises(RewardError, match="one entry for each of the 2"):
        listed([classifier(), print], [tokenizer])
    with pytest.raises(RewardError, match="one entry for each of the 2"):
        listed([classifier(), print], tokenizer)
    model, function = listed([classifier(), print], [tokenizer, None])
    assert isinstance(model, RewardModel)
    assert function is print


def test_rows_of_a_file_are_scored_by_a_model_that_is_named(folder, tokenizer):
    place = folder()
    model = AutoModelForSequenceClassification.from_pretrained(place)
    scored = score_rows([{"prompt": "t5 t6", "completion": " t20"}], place)
    expected = float(alone(model, tokenizer, "t5 t6 t20")[0])
    assert scored[0]["reward"] == pytest.approx(expected, abs=1e-6)
