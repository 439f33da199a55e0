"""What others stumbled over (MEASURED.md, "Known traps"): each once, by name, through the front door."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from backends.mock.runner import next_token
from backends.mock.simple_bpe import SimpleBPE
from nanovllm import LLM, ChatTemplateError, ConfigError, EngineConfig, FinishReason, SamplingParams
from nanovllm.chat_template import ChatTemplate

MakeLLM = Callable[..., LLM]
SIMPLE = SimpleBPE()
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def predicted(prompt: list[int], max_tokens: int = 8) -> list[int]:
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(next_token(tokens, 512))
    return tokens[len(prompt) :]


# -- nano-vllm: the prefix cache --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [4, 8, 16])
def test_a_prompt_that_lies_wholly_in_the_prefix_cache_is_answered(length: int, make_llm: MakeLLM) -> None:
    llm = make_llm()  # nano-vllm #144, #199
    prompt = list(range(1, length + 1))
    for num_cached in (0, length - 4, length - 4):
        (output,) = llm.generate(prompt, GREEDY)
        assert output.outputs[0].token_ids == predicted(prompt)
        assert output.num_cached_tokens == num_cached


def test_a_prompt_and_its_answer_asked_again_as_one_prompt_are_answered_from_the_cache(make_llm: MakeLLM) -> None:
    llm = make_llm()
    first = llm.generate([1, 2, 3, 4, 5], GREEDY)[0].outputs[0].token_ids
    prompt = [1, 2, 3, 4, 5, *first, 7]
    (output,) = llm.generate(prompt, GREEDY)
    assert output.outputs[0].token_ids == predicted(prompt)
    assert output.num_cached_tokens == 12


def test_two_requests_of_one_batch_that_share_a_new_prefix_are_both_right_and_it_is_computed_once(
    make_llm: MakeLLM,
) -> None:
    llm = make_llm()  # nano-vllm #209
    shared = list(range(1, 17))
    prompts = [[*shared, 40], [*shared, 41], shared, shared]
    outputs = llm.generate(prompts, GREEDY)
    assert [output.outputs[0].token_ids for output in outputs] == [predicted(prompt) for prompt in prompts]
    assert llm.stats().prefill_tokens <= 16 + 1 + 1 + 4 + 4


def test_a_preempted_request_that_finds_its_own_blocks_again_is_right(make_llm: MakeLLM) -> None:
    llm = make_llm(num_kv_blocks=12, max_model_len=40)  # nano-vllm #211, #233
    prompts = [[i + 1, i + 2, i + 3] * 5 for i in range(3)]
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    outputs = llm.generate(prompts, params)
    assert [output.outputs[0].token_ids for output in outputs] == [predicted(prompt, 20) for prompt in prompts]
    stats = llm.stats()
    assert stats.num_preemptions > 0
    assert stats.prefix_cache_hits > 0
    assert [output.num_cached_tokens for output in outputs] == [0, 0, 0]  # hits of its own do not count for the user


def test_a_preempted_request_that_shares_blocks_takes_none_from_the_other(make_llm: MakeLLM) -> None:
    llm = make_llm(num_kv_blocks=9, max_model_len=36)
    shared = list(range(1, 13))
    prompts = [[*shared, 40], [*shared, 41], [*shared, 42]]
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    outputs = llm.generate(prompts, params)
    assert [output.outputs[0].token_ids for output in outputs] == [predicted(prompt, 20) for prompt in prompts]
    assert llm.stats().num_preemptions > 0
    assert llm.stats().num_free_kv_blocks == 9


# -- onnxruntime-genai: stop words ------------------------------------------------------------------------------------


def test_a_stop_word_that_spans_tokens_ends_the_text_before_it_and_the_request_at_once(make_llm: MakeLLM) -> None:
    llm = make_llm()  # onnxruntime-genai #454
    prompt, pieces = next(
        ([a, b], pieces)
        for a in range(1, 60)
        for b in range(1, 60)
        if all(pieces := [SIMPLE.decode([i]) for i in predicted([a, b])]) and "".join(pieces).isascii()
    )
    stop = pieces[2][-1] + pieces[3] + pieces[4][:1]  # from inside one token into another
    text = "".join(pieces)
    assert text.index(stop) == len("".join(pieces[:3])) - 1
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, stop=[stop, "never"])
    (output,) = llm.generate(prompt, params)
    assert output.outputs[0].text == text[: text.index(stop)]
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == (FinishReason.STOP, stop)
    assert len(output.outputs[0].token_ids) == 5
    shown = [out.outputs[0].text for out in llm.stream(prompt, params)]
    assert all(text[: text.index(stop)].startswith(part) for part in shown)
    included = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, stop=stop, include_stop_str_in_output=True)
    (output,) = llm.generate(prompt, included)
    assert output.outputs[0].text == text[: text.index(stop) + len(stop)]


def test_a_stop_token_ends_the_request_and_is_not_in_the_text(make_llm: MakeLLM) -> None:
    llm = make_llm()
    ids = predicted([5, 6])
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, stop_token_ids=[ids[3]])
    (output,) = llm.generate([5, 6], params)
    assert output.outputs[0].token_ids == ids[: ids.index(ids[3]) + 1]
    assert output.outputs[0].text == SimpleBPE().decode(ids[: ids.index(ids[3])])
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == (FinishReason.STOP, ids[3])


def test_the_end_of_sequence_ends_a_request_unless_it_is_ignored(make_llm: MakeLLM) -> None:
    prompt = next([a, b] for a in range(1, 60) for b in range(1, 60) if 0 in predicted([a, b])[1:6])
    llm = make_llm()
    end = predicted(prompt).index(0)
    (output,) = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=8))
    assert output.outputs[0].token_ids == predicted(prompt)[: end + 1]
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == (FinishReason.STOP, None)
    (output,) = llm.generate([prompt], GREEDY)
    assert output.outputs[0].token_ids == predicted(prompt)


# -- onnxruntime-genai: chat templates as transformers renders them ---------------------------------------------------

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama": """{{- bos_token }}
{%- set date_string = strftime_now("%d %b %Y") %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" + "Today Date: " + date_string + "\\n\\n" + system_message }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + eos_token }}
{%- endfor %}
""",
    "mistral": """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) and message['role'] != 'system' and not tools %}
{{ raise_exception('After the optional system message, roles must alternate user/assistant') }}
{% endif %}
  {% if message['role'] == 'user' %}
  [INST] {{ message['content'] }} [/INST]
  {% else %}{# a comment #}
    {{ message['content'] + eos_token }}
  {% endif %}
{% endfor %}""",
    "tools": """{%- if tools %}
# Tools
{% for tool in tools %}
{{ tool | tojson }}
{{ tool.function | tojson(indent=2) }}
{% endfor %}
{%- endif %}
{% for message in messages %}
{%- if message.tool_calls is defined and message.tool_calls %}
{%- for call in message.tool_calls %}<tool_call>{{ call.function.name }} {{ call.function.arguments | tojson }}
{%- endfor %}
{%- elif message.content is string %}
{{ message.role }}: {{ message.content }}
{%- else %}
{%- for part in message.content %}{{ part['text'] if part['type'] == 'text' else '<image>' }}{% endfor %}
{%- endif %}
{% endfor %}""",
    "loop controls": """{% for message in messages %}
{% if message['role'] == 'system' %}{% continue %}{% endif %}
{% if loop.index > 3 %}{% break %}{% endif %}
{{ message['role'] | upper }}={{ message['content'] }}
{% endfor %}""",
    "generation": """{% set ns = namespace(count=0) %}
{%- for message in messages %}
{%- if message['role'] == 'assistant' %}
{% generation %}
  {{ message['content'] }}{{ eos_token }}
{%- endgeneration %}
{%- else %}{% set ns.count = ns.count + 1 %}[{{ ns.count }}] {{ message['content'] }}
{%- endif %}
{%- endfor %}
{%- macro end(what) %}<{{ what }}>{% endmacro %}{{ end('done') }}""",
    "variables": (
        "{{ messages | map(attribute='role') | join(',') }}|{{ enable_thinking is defined and enable_thinking }}|"
        "{{ documents is none or documents }}|{{ unk_token is defined }}|{{ '<b>' }}|{{ {'é': '<&>'} | tojson }}|"
        "{{ eos_token }}|{{ tools is none }}"
    ),
}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "Hello  <b>&amp; 'é' 🙂</b>"}],
    "system": [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": "\tWhy?"}],
    "turns": [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "Three\n\n"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "Five"},
    ],
    "calls": [
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image"}]},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}],
        },
        {"role": "tool", "content": '{"t": 21}'},
    ],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The <weather>",
            "parameters": {"type": "object", "é": [1.5, None]},
        },
    }
]
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def reference(template: str) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    rust = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=rust, chat_template=template, **SPECIAL_TOKENS)


def outcome(render: Callable[[], str]) -> str | None:
    """The text, or None where the template refused the messages."""
    try:
        return render()
    except Exception:  # transformers lets jinja2's and Python's exceptions through
        return None


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("variables", [{}, {"enable_thinking": True, "eos_token": "<eos>", "documents": [{"a": 1}]}])
def test_a_chat_template_renders_as_transformers_renders_it(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: list[dict[str, Any]] | None,
    prompt: bool,
    variables: dict[str, Any],
) -> None:
    ours = ChatTemplate(template, SPECIAL_TOKENS)
    try:
        text = ours.render(messages, tools=tools, add_generation_prompt=prompt, **variables)
    except ChatTemplateError:
        text = None
    theirs = outcome(
        lambda: reference(template).apply_chat_template(
            messages, tools=tools, add_generation_prompt=prompt, tokenize=False, **variables
        )
    )
    assert text == theirs


def test_most_of_these_templates_do_render() -> None:
    rendered = [
        outcome(lambda t=template, m=messages: ChatTemplate(t, SPECIAL_TOKENS).render(m, tools=TOOLS))
        for template in TEMPLATES.values()
        for messages in CONVERSATIONS.values()
    ]
    assert sum(bool(text) for text in rendered) >= 23
    assert len(set(rendered)) >= 20


@pytest.mark.parametrize(
    ("config", "jinja", "expected"),
    [
        ({"chat_template": "config {{ eos_token }}", "eos_token": "</s>"}, None, "config </s>"),
        ({"chat_template": "config", "eos_token": {"content": "<e>"}}, "file {{ eos_token }}", "file <e>"),
        ({"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}, None, "d"),
        ({}, None, None),
        (None, None, None),
    ],
)
def test_a_chat_template_is_found_where_transformers_keeps_it(
    config: dict[str, Any] | None, jinja: str | None, expected: str | None, tmp_path: Path
) -> None:
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if jinja is not None:
        (tmp_path / "chat_template.jinja").write_text(jinja)
    template = ChatTemplate.load(tmp_path)
    assert (template and template.render(CONVERSATIONS["one"])) == expected


def test_a_template_cannot_reach_python() -> None:
    for source in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ cycler.__init__.__globals__.os }}"):
        with pytest.raises(ChatTemplateError):
            ChatTemplate(source).render([{"role": "user", "content": "x"}])


# -- mini-sglang: parameters that are accepted and ignored ------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["best_of", "stop_words", "temprature", "guided_json", "length_penalty", "early_stopping"]
)
def test_a_sampling_parameter_that_is_not_honoured_is_refused_by_name(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        SamplingParams(**{name: 1})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_seqs", "Did you mean 'max_num_seqs'"),
        ("gpu_memory_utilization", "Known options"),
        ("dtype", "Known options"),
    ],
)
def test_an_engine_option_that_does_not_exist_is_refused_with_the_nearest_one(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown option '{name}' of the engine\. {hint}"):
        LLM("any", backend="mock", **{name: 1})
    with pytest.raises(ConfigError, match=name):
        EngineConfig.from_options({name: 1})
    with pytest.raises(TypeError, match=name):
        EngineConfig(**{name: 1})


def test_a_configuration_is_never_changed_afterwards() -> None:
    for record, name in ((EngineConfig(), "seed"), (SamplingParams(), "n"), (SamplingParams(), "seed")):
        with pytest.raises(AttributeError):
            setattr(record, name, 1)
