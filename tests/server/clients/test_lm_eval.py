"""lm-eval measures the server with its own client, and finds what the library says of the same texts.

The tasks are made here: choices by their log-likelihood, the likelihood of whole texts, and generated answers.
"""

import json
from typing import Any

import pytest
from client_process import ClientProcess, client_process
from live_server import LiveServer

from nanovllm import LLM, SamplingParams

KEY = "a-key-for-clients"
DOCUMENTS = [
    {
        "question": f"The capital of {country} is",
        "choices": [f" {city}." for city in cities],
        "answer": 0,
        "asked": f"What is the capital of {country}?",
    }
    for country, cities in (
        ("France", ("Paris", "Rome", "the moon")),
        ("Italy", ("Rome", "Paris", "a long way from here, they say")),
        ("Japan", ("Tokyo", "Kyoto", "日本")),
        ("Spain", ("Madrid", "Lisbon", "Öland")),
        ("Peru", ("Lima", "Quito", "x")),
    )
]
SHARED = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
"""
KINDS = {
    "capitals_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc}]
""",
    "capitals_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}{{choices[0]}}"
metric_list: [{metric: word_perplexity}]
""",
    "capitals_answer": """
output_type: generate_until
doc_to_text: "{{asked}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\\n", "!"], do_sample: false, temperature: 0.0, max_gen_toks: 24}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module")
def lm_eval(tmp_path_factory: pytest.TempPathFactory) -> ClientProcess:
    """An environment whose home holds the tasks."""
    home = tmp_path_factory.mktemp("lm_eval")
    client = client_process("NANOVLLM_LM_EVAL_PYTHON", home)
    data = home / "capitals.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS), encoding="utf-8")
    for name, kind in KINDS.items():
        text = SHARED.format(name=name, data=data.as_posix()) + kind
        (home / f"{name}.yaml").write_text(text, encoding="utf-8")
    return client


def evaluated(lm_eval: ClientProcess, server: LiveServer, model: str, *args: str, tasks: list[str]) -> dict[str, Any]:
    """The samples that lm-eval has logged, by task and in the order of the documents."""
    path = "/v1/completions" if model == "local-completions" else "/v1/chat/completions"
    given = {"model": "tiny-chat", "base_url": server.url + path, "max_retries": 1, "max_length": 2048}
    remote = {"tokenizer_backend": "remote", "auth_token": KEY} if model == "local-completions" else {}
    model_args = ",".join(f"{name}={value}" for name, value in {**given, **remote}.items())
    output = lm_eval.home / "-".join([model, *tasks])
    options = ["--model", model, "--model_args", model_args, "--tasks", ",".join(tasks), "--log_samples"]
    places = ["--include_path", str(lm_eval.home), "--output_path", str(output)]
    lm_eval.output("-m", "lm_eval", "run", *options, *places, *args, OPENAI_API_KEY=KEY)
    found = {}
    for task in tasks:
        (file,) = output.rglob(f"samples_{task}_*.jsonl")
        samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        found[task] = sorted(samples, key=lambda sample: sample["doc_id"])
    return found


def log_likelihood(library: LLM, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Of the continuation after the context, and whether it is what greedy decoding finds."""
    ids = context + continuation
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1)
    (output,) = library.generate([ids], params)
    assert output.prompt_logprobs is not None
    entries = [
        entry[token_id]
        for token_id, entry in zip(continuation, output.prompt_logprobs[len(context) :], strict=True)
        if entry is not None
    ]
    return sum(entry.logprob for entry in entries), all(entry.rank == 1 for entry in entries)


def test_choices_and_texts_are_as_likely_as_the_library_says(
    lm_eval: ClientProcess, keyed_chat: LiveServer, library: LLM
) -> None:
    tasks = ["capitals_choice", "capitals_rolling"]
    samples = evaluated(lm_eval, keyed_chat, "local-completions", "--batch_size", "4", tasks=tasks)
    encode = library.tokenizer.encode
    for document, sample in zip(DOCUMENTS, samples["capitals_choice"], strict=True):
        context = encode(document["question"], add_special_tokens=False)
        assert len(sample["filtered_resps"]) == len(document["choices"])
        for choice, (told, is_greedy) in zip(document["choices"], sample["filtered_resps"], strict=True):
            whole = encode(document["question"] + choice, add_special_tokens=False)
            expected, expected_greedy = log_likelihood(library, context, whole[len(context) :])
            assert float(told) == pytest.approx(expected, abs=1e-3)
            assert str(is_greedy) == str(expected_greedy)
        assert sample["acc"] == 1.0, "the model knows its capitals"
    assert library.model_info.bos_token_id is not None
    bos = [library.model_info.bos_token_id]  # which lm-eval puts before whole texts
    for document, sample in zip(DOCUMENTS, samples["capitals_rolling"], strict=True):
        text = encode(document["question"] + document["choices"][0], add_special_tokens=False)
        (told,) = sample["filtered_resps"]
        assert float(told) == pytest.approx(log_likelihood(library, bos, text)[0], abs=1e-3)


def test_chat_answers_are_the_servers(lm_eval: ClientProcess, keyed_chat: LiveServer) -> None:
    task = "capitals_answer"
    samples = evaluated(lm_eval, keyed_chat, "local-chat-completions", "--apply_chat_template", tasks=[task])[task]
    for document, sample in zip(DOCUMENTS, samples, strict=True):
        messages = [{"role": "user", "content": document["asked"]}]
        answer = keyed_chat.answer("/v1/chat/completions", messages=messages, temperature=0, max_tokens=24)
        assert sample["filtered_resps"] == [answer["choices"][0]["message"]["content"]]


def test_continuations_are_the_librarys(lm_eval: ClientProcess, keyed_chat: LiveServer, library: LLM) -> None:
    task = "capitals_answer"
    samples = evaluated(lm_eval, keyed_chat, "local-completions", "--batch_size", "2", tasks=[task])[task]
    params = SamplingParams(temperature=0, max_tokens=24, stop=["\n", "!"])
    prompts = [library.tokenizer.encode(document["asked"], add_special_tokens=False) for document in DOCUMENTS]
    for sample, output in zip(samples, library.generate(prompts, params), strict=True):
        assert sample["filtered_resps"] == [output.outputs[0].text]


def test_its_remote_tokenizer_writes_the_same_prompts(lm_eval: ClientProcess, keyed_chat: LiveServer) -> None:
    """With the chat template that /tokenizer_info tells."""
    told = lm_eval.told("lm_eval_tokenizer_program.py", url=keyed_chat.url, key=KEY)
    tokens = keyed_chat.answer("/tokenize", messages=told["messages"])["tokens"]
    assert told["tokens"] == tokens
    assert told["text"] == told["prompt"]
