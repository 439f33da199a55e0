"""simonw's llm talks to the server through its file extra-openai-models.yaml alone."""

import json
from pathlib import Path

import pytest
from client_process import ClientProcess, client_process
from live_server import LiveServer

KEY = "a-key-for-clients"
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
MODELS = """
- model_id: tiny
  model_name: tiny-chat
  api_base: "{url}/v1"
  api_key_name: tiny
  supports_schema: true
  supports_tools: true
- model_id: tiny-text
  model_name: tiny-chat
  api_base: "{url}/v1"
  api_key_name: tiny
  completion: true
"""


@pytest.fixture
def llm(keyed_chat: LiveServer, tmp_path: Path) -> ClientProcess:
    client = client_process("NANOVLLM_LLM_PYTHON", tmp_path)
    (tmp_path / "extra-openai-models.yaml").write_text(MODELS.format(url=keyed_chat.url), encoding="utf-8")
    (tmp_path / "keys.json").write_text(json.dumps({"tiny": KEY}), encoding="utf-8")
    return client


def ask(llm: ClientProcess, *args: str) -> str:
    return llm.output("-m", "llm", *args, LLM_USER_PATH=str(llm.home))


@pytest.mark.parametrize("options", [(), ("--no-stream",), ("--async",)])
def test_a_question_is_answered(llm: ClientProcess, options: tuple[str, ...]) -> None:
    assert ask(llm, "-m", "tiny", *options, "-o", "temperature", "0", QUESTION).strip() == ANSWER


def test_the_tokens_of_a_stream_are_counted(llm: ClientProcess) -> None:
    ask(llm, "-m", "tiny", "-o", "temperature", "0", QUESTION)
    (logged,) = json.loads(ask(llm, "logs", "list", "--json"))
    assert logged["response"] == ANSWER
    assert logged["input_tokens"] > 0
    assert logged["output_tokens"] > 0


def test_a_conversation_goes_on(llm: ClientProcess) -> None:
    ask(llm, "-m", "tiny", "-o", "temperature", "0", QUESTION)
    assert ask(llm, "-c", "-o", "temperature", "0", "-o", "max_tokens", "8", "And of Italy?").strip()


def test_an_answer_has_the_form_of_a_schema(llm: ClientProcess) -> None:
    schema = {"type": "object", "properties": {"capital": {"enum": ["Paris", "Rome"]}}, "required": ["capital"]}
    closed = json.dumps({**schema, "additionalProperties": False})
    assert json.loads(ask(llm, "-m", "tiny", "--schema", closed, QUESTION))["capital"] in ("Paris", "Rome")


def test_tools_may_be_offered(llm: ClientProcess) -> None:
    function = "def population(country: str) -> int:\n    return 7"
    answer = ask(
        llm, "-m", "tiny", "--functions", function, "-o", "temperature", "0", "-o", "max_tokens", "30", QUESTION
    )
    assert answer.strip()


def test_the_older_api_continues_a_text(llm: ClientProcess) -> None:
    given = ("-m", "tiny-text", "-o", "temperature", "0", "-o", "max_tokens", "2", "The capital of France is")
    assert ask(llm, *given) == ask(llm, *given, "--no-stream")


def test_an_error_is_told_in_the_servers_words(llm: ClientProcess) -> None:
    done = llm.run("-m", "llm", "-m", "tiny", "--key", "wrong", QUESTION, LLM_USER_PATH=str(llm.home))
    assert done.returncode == 1
    assert "the key is none that this server knows" in done.stderr
