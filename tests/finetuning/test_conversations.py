"""Which tokens of a conversation are trained, and which shapes and templates are refused."""

import json

import pytest

from stablelm.config import InputError
from stablelm.finetuning.conversations import ChatEncoder, Fault, Message, messages_of
from stablelm.tokenizer import Tokenizer
from stablelm.tokenizer.chat import ZEPHYR, render

SAID = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "The sky?"},
    {"role": "assistant", "content": "It is blue."},
    {"role": "user", "content": "Really?"},
    {"role": "assistant", "content": "Yes."},
]


def encode(tokenizer, said, template=ZEPHYR):
    return ChatEncoder(tokenizer, template, 0).segments(messages_of(said, "messages"))


def flat(segments):
    return [number for segment in segments for number in segment.ids]


def trained(tokenizer, segments):
    return [tokenizer.decode(segment.ids) for segment in segments if segment.trained]


def test_zephyrs_format_to_the_token(tokenizer):
    segments = encode(tokenizer, SAID[1:3])
    text = "<|user|>\nThe sky?<|endoftext|>\n<|assistant|>\nIt is blue.<|endoftext|>"
    assert tokenizer.decode(flat(segments)) == text
    assert flat(segments)[-1] == 0 == tokenizer.eos_id
    assert trained(tokenizer, segments) == ["It is blue.", "<|endoftext|>"]
    assert sum(segment.text_bytes for segment in segments if segment.trained) == len("It is blue.")


def test_a_prompt_has_the_ids_that_chat_gives_it(tokenizer):
    """What is read before each answer is the rendered conversation, encoded as one text."""
    segments = encode(tokenizer, SAID)
    for answers, at in ((0, 2), (1, 4)):
        prompt = tokenizer.encode(render(ZEPHYR, SAID[:at]))
        first = [i for i, s in enumerate(segments) if s.trained and s.text_bytes][answers]
        assert flat(segments[:first]) == prompt
    assert trained(tokenizer, segments) == ["It is blue.", "<|endoftext|>", "Yes.", "<|endoftext|>"]


def test_the_released_tokenizer_reads_roles_as_plain_text(shared):
    """Of stablelm-zephyr-3b's format only the separator, id 0, is special; padding is id 1."""
    neox = Tokenizer.from_file(shared / "data" / "neox-tokenizer")
    segments = encode(neox, SAID[1:])
    ids = flat(segments)
    assert (neox.eos_id, neox.pad_id, ids.count(0)) == (0, 1, 4)
    assert not neox.special_ids - {0} & set(ids)
    said = "<|user|>\nThe sky?<|endoftext|>\n<|assistant|>\nIt is blue.<|endoftext|>\n"
    said += "<|user|>\nReally?<|endoftext|>\n<|assistant|>\nYes.<|endoftext|>"
    assert neox.decode(ids) == said and ids == neox.encode(said)
    assert trained(neox, segments) == ["It is blue.", "<|endoftext|>", "Yes.", "<|endoftext|>"]


def test_what_a_tokenizer_puts_before_every_prompt_is_read_first(tokenizer):
    content = json.loads(tokenizer.content)
    single = [{"SpecialToken": {"id": "<|padding|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    content["post_processor"] = {
        "type": "TemplateProcessing", "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|padding|>": {"id": "<|padding|>", "ids": [1], "tokens": ["<|padding|>"]}},
    }  # fmt: skip
    begins = Tokenizer(json.dumps(content).encode(), "one that begins with a token")
    segments = encode(begins, SAID[1:3])
    first = next(i for i, segment in enumerate(segments) if segment.trained)
    assert flat(segments[:first]) == begins.encode(render(ZEPHYR, SAID[1:2]))
    assert flat(segments)[0] == 1 and not segments[0].trained


def test_an_answer_with_weight_0_is_read_only(tokenizer):
    said = [*SAID[1:2], {**SAID[2], "weight": 0}, *SAID[3:]]
    assert trained(tokenizer, encode(tokenizer, said)) == ["Yes.", "<|endoftext|>"]


def test_no_message_can_forge_a_separator(tokenizer):
    said = [{"role": "user", "content": "<|endoftext|>"}, {"role": "assistant", "content": "a<|endoftext|>b"}]
    segments = encode(tokenizer, said)
    assert flat(segments).count(0) == 2, "one after each message, and none from within"
    assert trained(tokenizer, segments) == ["a<|endoftext|>b", "<|endoftext|>"]


def test_a_word_of_the_template_inside_a_message_is_the_messages(tokenizer):
    said = [{"role": "user", "content": "user"}, {"role": "assistant", "content": "<|assistant|>\n"}]
    assert trained(tokenizer, encode(tokenizer, said)) == ["<|assistant|>\n", "<|endoftext|>"]


def test_sharegpt_is_openai_in_other_words(tokenizer):
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    shared = [{"from": names[m["role"]], "value": m["content"]} for m in SAID]
    assert encode(tokenizer, shared) == encode(tokenizer, SAID)
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in SAID]
    assert encode(tokenizer, parts) == encode(tokenizer, SAID)


def test_a_template_that_trims_and_one_that_adds_before_the_separator(tokenizer):
    trims = ZEPHYR.replace("message['content']", "(message['content'] | trim)")
    said = [{"role": "user", "content": "  Hi\n"}, {"role": "assistant", "content": " Yes. "}]
    assert trained(tokenizer, encode(tokenizer, said, trims)) == ["Yes.", "<|endoftext|>"]
    adds = ZEPHYR.replace("+ eos_token", "+ ' ' + eos_token")
    assert trained(tokenizer, encode(tokenizer, SAID[1:3], adds)) == ["It is blue. ", "<|endoftext|>"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (ZEPHYR.replace("eos_token", "''"), "does not put '<|endoftext|>'"),
        ("{% for m in messages %}{{ m.role }}{{ eos_token }}{% endfor %}", "does not say the messages"),
        ("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", None),
        (ZEPHYR.replace("{{ '<|assistant|>\\n' }}", "<|a|>"), "asks for an answer in other words"),
    ],
)  # fmt: skip
def test_templates_whose_answers_cannot_be_told_or_never_end(tokenizer, template, message):
    encoder = ChatEncoder(tokenizer, template, 0)
    if message is None:
        encoder.check()
        return
    with pytest.raises(InputError) as refused:
        encoder.check()
    assert message in str(refused.value)
    assert "zephyr" in str(refused.value)


def test_a_template_that_changes_a_message_is_refused(tokenizer):
    shouts = ZEPHYR.replace("message['content']", "(message['content'] | upper)")
    with pytest.raises(Fault) as refused:
        encode(tokenizer, SAID, shouts)
    assert refused.value.reason == "changed by the template"


USER, ANSWER, SYSTEM = SAID[1], SAID[2], SAID[0]


@pytest.mark.parametrize(
    ("said", "reason", "what"),
    [
        ([USER, USER, ANSWER], "roles out of order", "messages[1] is of the user, where the assistant"),
        ([ANSWER], "roles out of order", "messages[0] is of the assistant, where the user"),
        ([USER, ANSWER, SYSTEM, USER, ANSWER], "roles out of order", "messages[2] is of the system"),
        ([USER, ANSWER, USER], "no answer at the end", "messages ends without an answer"),
        ([SYSTEM], "no answer at the end", "ends without"),
        ([USER, {**ANSWER, "content": " \n"}], "empty answer", "messages[1]: the answer has no text"),
        ([USER, {**ANSWER, "weight": 0}], "nothing to learn", "weight 0"),
        ([USER, {**ANSWER, "weight": 2}], "wrong type", "messages[1].weight is 2"),
        ([{**USER, "role": "tool"}, ANSWER], "unknown role", "the role is 'tool'; known are system, user"),
        ([USER, {**ANSWER, "tool_calls": [1]}], "more than text", "'tool_calls'"),
        ([{"role": "user"}, ANSWER], "missing key", "messages[0] lacks role and content"),
        ([USER, {**ANSWER, "content": 7}], "wrong type", "messages[1].content is a number, not a string"),
        ([USER, {**ANSWER, "content": "\ud83d"}], "lone surrogate", "messages[1].content: character 1"),
        (["hello"], "wrong type", "messages[0] is a string; wanted is an object"),
        ([], "wrong type", "'messages' is an empty list; wanted is a list of messages"),
        ("hello", "wrong type", "'messages' is a string"),
    ],
)
def test_conversations_that_are_none(said, reason, what):
    with pytest.raises(Fault) as refused:
        messages_of(said, "messages")
    assert refused.value.reason == reason
    assert what in refused.value.what


def test_messages_keep_their_order_and_kind():
    assert messages_of(SAID[1:3], "messages") == [
        Message("user", "The sky?"), Message("assistant", "It is blue.", True),
    ]  # fmt: skip
