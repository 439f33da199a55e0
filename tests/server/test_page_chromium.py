"""The web page in a real browser. Skipped where no Chromium is installed."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import LiveServer
from scripted_server import ScriptedServer, scripted_server

websockets = pytest.importorskip("websockets", reason="websockets is not installed: the browser cannot be driven")

from chromium import SHIFT, Browser, Tab, chromium, find_chromium  # noqa: E402  (needs websockets)

BUSY = "!document.getElementById('stop').hidden"
IDLE = "document.getElementById('stop').hidden"
ANSWER = ".message.assistant:last-child .body"
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script> [a](javascript:alert(1)) **b** `<b>`'


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with chromium(path, tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: NANOVLLM_PAGE_SHOTS, to look at them, or a folder that is thrown away."""
    folder = Path(os.environ.get("NANOVLLM_PAGE_SHOTS") or tmp_path_factory.mktemp("shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@pytest.fixture
def tab(browser: Browser, scripted: ScriptedServer) -> Iterator[Tab]:
    with browser.tab(scripted.url) as opened:
        opened.until("document.getElementById('model').options.length")
        yield opened


def ask(tab: Tab, question: str) -> None:
    """With the keyboard, from wherever the page put the focus, until the answer is there."""
    tab.evaluate("document.getElementById('question').focus()")
    tab.type(question)
    tab.press("Enter")
    tab.until(f"{IDLE} && document.querySelector('.message.assistant:last-child .meta')")


def test_the_model_in_the_box_answers(browser: Browser, tiny_chat: LiveServer) -> None:
    with browser.tab(tiny_chat.url) as tab:
        tab.until("document.getElementById('model').value === 'tiny-chat'")
        ask(tab, "What is the capital of France?")
        assert "Paris" in tab.text(ANSWER)
        assert re.match(r"\d+ tokens · .*prompt \d+ tokens$", tab.text(".meta")), tab.text(".meta")
        assert tab.complaints() == []
        assert all(url.startswith(tiny_chat.url) for url in tab.requested())


def test_the_page_loads_with_a_strict_policy_and_asks_nobody_else(tab: Tab, scripted: ScriptedServer) -> None:
    (told,) = [e["response"] for e in tab.events("Network.responseReceived") if e["type"] == "Document"]
    policy = {name.lower(): value for name, value in told["headers"].items()}["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert tab.complaints() == []
    assert {url.rsplit("/", 1)[0] for url in tab.requested()} == {
        scripted.url,
        scripted.url + "/page",
        scripted.url + "/v1",
    }


def test_settings_travel_in_the_request(tab: Tab, scripted: ScriptedServer) -> None:
    ask(tab, "plain")
    assert scripted.asked.get(timeout=5).keys() == {"model", "messages", "stream", "stream_options"}
    assert scripted.keys.get(timeout=5) is None
    tab.tab_to("#show-settings")
    tab.press("Enter")
    tab.tab_to("#model")
    values = {
        "system": "Be kind.",
        "temperature": "0.5",
        "top_p": "0.9",
        "top_k": "7",
        "max_tokens": "33",
        "seed": "42",
    }
    for name, value in {**values, "key": "sk-1"}.items():
        tab.tab_to(f"#{name}")
        tab.type(value)
    tab.press("Escape")
    ask(tab, "again")
    asked = scripted.asked.get(timeout=5)
    assert asked["messages"][0] == {"role": "system", "content": "Be kind."}
    wanted = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "max_completion_tokens": 33, "seed": 42, "stream": True}
    assert {name: asked[name] for name in wanted} == wanted
    assert scripted.keys.get(timeout=5) == "Bearer sk-1"
    assert tab.evaluate("JSON.stringify([localStorage, sessionStorage])").count("sk-1") == 0
    tab.evaluate("document.getElementById('show-settings').click(), document.getElementById('keep-key').click()")
    tab.press("Escape")
    tab.until("sessionStorage.getItem('nanovllm.key') === 'sk-1'")
    assert "sk-1" not in tab.evaluate("JSON.stringify(localStorage)")


@pytest.mark.parametrize("by", ["Escape", "button"])
def test_stop_ends_the_answer_and_keeps_what_is_there(tab: Tab, scripted: ScriptedServer, by: str) -> None:
    scripted.answer = ["Once upon", " a time", None]
    tab.type("Tell me a story")
    tab.press("Enter")
    tab.until(f"{BUSY} && document.querySelector('{ANSWER}')?.innerText.includes('a time')")
    if by == "Escape":
        tab.press("Escape")
    else:
        tab.click("#stop")
    tab.until(IDLE)
    assert scripted.gone.wait(10), "the server saw the client go"
    assert tab.text(ANSWER).strip() == "Once upon a time"
    assert "stopped" in tab.text(".meta")


def test_a_conversation_survives_a_reload_and_can_be_renamed_exported_and_deleted(
    tab: Tab, scripted: ScriptedServer
) -> None:
    ask(tab, "first question")
    tab.open(scripted.url)
    tab.until("document.querySelectorAll('.message').length === 2")
    assert tab.text("#title") == "first question"
    tab.click("#new-chat")
    ask(tab, "second question")
    assert tab.evaluate("document.querySelectorAll('#conversations li').length") == 2
    tab.click("#rename")
    tab.type("My name")
    tab.press("Enter")
    tab.until("document.getElementById('title').textContent === 'My name'")
    tab.evaluate(
        "window.saved = null; URL.createObjectURL = (blob) => { blob.text().then((t) => (saved = t)); return '#'; };"
    )
    tab.click("#export")
    tab.until("saved")
    assert tab.evaluate("JSON.parse(saved).messages.map((m) => m.content)") == ["second question", "Hello."]
    tab.click("#delete")
    tab.click("#delete-dialog .danger")
    tab.until("document.getElementById('title').textContent === 'first question'")
    assert "second question" not in tab.evaluate("JSON.stringify(localStorage)")


def test_tokens_and_their_rate_are_shown(tab: Tab, scripted: ScriptedServer) -> None:
    scripted.answer = ["one", 0.3, " two"]
    ask(tab, "count")
    told = re.fullmatch(r"5 tokens · ([\d.]+) tokens/s · first after [\d.]+ s · prompt 7 tokens", tab.text(".meta"))
    assert told is not None, tab.text(".meta")
    assert 0 < float(told[1]) < 40, "four tokens in about 0.3 s"


def test_code_can_be_copied(tab: Tab, scripted: ScriptedServer) -> None:
    scripted.answer = ["Run this:\n```sh\nls -l\n```"]
    ask(tab, "how?")
    tab.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    tab.click(".code button")
    tab.until("window.copied === 'ls -l' && document.querySelector('.code button').textContent === 'Copied'")


def test_a_second_tab_does_not_overwrite_the_conversations_of_the_first(tab: Tab, scripted: ScriptedServer) -> None:
    ask(tab, "here")
    other = {"id": "other", "title": "there", "updated": 0, "messages": [{"role": "user", "content": "x"}]}
    tab.evaluate(
        f"const saved = JSON.parse(localStorage['nanovllm.conversations']); saved.push({json.dumps(other)});"
        "localStorage['nanovllm.conversations'] = JSON.stringify(saved); dispatchEvent(new StorageEvent('storage'));"
    )
    tab.until("document.getElementById('conversations').innerText.includes('there')")
    ask(tab, "again")
    assert "there" in tab.evaluate("localStorage['nanovllm.conversations']")


def test_hostile_text_of_either_side_stays_text(tab: Tab, scripted: ScriptedServer) -> None:
    scripted.answer = [*HOSTILE, "\n```html\n", HOSTILE, "\n```\n", "> " * 5000, "\n" + "*" * 2000]
    ask(tab, HOSTILE)
    tab.open(scripted.url)
    tab.until("document.querySelectorAll('.message').length === 2")
    assert tab.evaluate("window.hacked") is None
    assert tab.evaluate("document.querySelectorAll('#messages :is(img, script, a)').length") == 0
    assert "<script>window.hacked=1</script>" in tab.text(ANSWER)
    assert tab.text(".message.user .body") == HOSTILE
    assert tab.evaluate(f"document.querySelector('{ANSWER} strong').textContent") == "b"
    assert tab.text(".code pre").strip() == HOSTILE
    assert tab.complaints() == []


def test_errors_are_shown_and_the_question_is_not_lost(tab: Tab, scripted: ScriptedServer) -> None:
    scripted.failure = "the server is draining."
    tab.type("Are you there?")
    tab.press("Enter")
    tab.until("!document.getElementById('error').hidden")
    assert tab.text("#error-text") == "the server is draining."
    assert tab.evaluate("document.getElementById('question').value") == "Are you there?"
    scripted.failure, scripted.mid_failure = None, "the device fell off the bus."
    tab.press("Enter")
    tab.until(f"{IDLE} && document.getElementById('error-text').textContent.includes('bus')")
    assert tab.text(ANSWER).strip() == "Hello."
    assert "broken off" in tab.text(".meta")


def test_the_keyboard_is_enough(tab: Tab, scripted: ScriptedServer) -> None:
    assert tab.evaluate("document.activeElement.id") == "question"
    tab.type("one")
    tab.press("Enter", modifiers=SHIFT)
    tab.type("two")
    tab.press("Enter")
    assert scripted.asked.get(timeout=5)["messages"][-1]["content"] == "one\ntwo"
    tab.until(f"{IDLE} && document.querySelector('.meta')")
    tab.tab_to("#new-chat")
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "the focus is seen"
    tab.press("Enter")
    tab.until("document.querySelectorAll('.message').length === 0")
    tab.tab_to("#conversations button")
    tab.press("Space")
    tab.until("document.querySelectorAll('.message').length === 2")
    for name in ("rename", "export", "delete", "theme", "show-settings", "scroller", "send"):
        tab.tab_to(f"#{name}")


def test_every_control_has_a_name_and_answers_are_announced(tab: Tab, scripted: ScriptedServer) -> None:
    scripted.answer = ["Look:\n```python\nprint(1)\n```"]
    scripted.reasoning = "Let me think."
    ask(tab, "show me")
    controls = ("button", "textbox", "combobox", "spinbutton", "checkbox", "link", "dialog", "DisclosureTriangle")
    for dialog in (None, "show-settings", "rename", "delete"):
        if dialog:
            tab.evaluate(f"document.getElementById('{dialog}').click()")
        nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
        seen = [node for node in nodes if not node["ignored"] and node["role"]["value"] in controls]
        assert len(seen) > 2
        assert [node for node in seen if not node["name"]["value"].strip()] == []
        tab.press("Escape")
    assert tab.text("#status").startswith("The answer is complete")
    assert tab.evaluate("document.getElementById('status').getAttribute('aria-live')") == "polite"
    assert "Let me think." in tab.evaluate("document.querySelector('.thought').textContent")


@pytest.mark.parametrize("dark", [False, True])
def test_both_themes_and_small_screens_can_be_read(
    browser: Browser, scripted: ScriptedServer, shots: Path, dark: bool
) -> None:
    name = "dark" if dark else "light"
    scripted.reasoning = "The user asks for a list and for code."
    scripted.answer = [
        "## Two ways\n\nUse a **loop** or a *comprehension*, as `range` allows:\n\n1. Write the loop.\n2. Read it.\n\n",
        "```python\nsquares = [n * n for n in range(10)]\nprint(squares)\n```\n\n> Measure before you optimise.\n",
    ]
    with browser.tab(scripted.url, dark=dark) as tab:
        tab.until("document.getElementById('model').options.length")
        tab.screenshot(shots / f"{name}-welcome.png")
        ask(tab, "How do I square the numbers below ten?")
        tab.screenshot(shots / f"{name}-chat.png")
        assert tab.evaluate("document.documentElement.dataset.theme") == name
        assert tab.evaluate(LOW_CONTRAST) == []
        tab.click("#show-settings")
        tab.screenshot(shots / f"{name}-settings.png")
        assert tab.evaluate(LOW_CONTRAST) == []
        tab.press("Escape")
        tab.click("#theme")
        assert tab.evaluate("document.documentElement.dataset.theme") != name
    with browser.tab(scripted.url, dark=dark, width=375, height=667) as tab:
        tab.until("document.getElementById('model').options.length")
        ask(tab, "How do I square the numbers below ten?")
        tab.screenshot(shots / f"{name}-small.png")
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
        tab.click("#show-sidebar")
        tab.until("document.activeElement.id === 'new-chat'")
        tab.press("Escape")
        tab.until("document.activeElement.id === 'show-sidebar'")


LOW_CONTRAST = """(() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => parse(color).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let each = node; each; each = each.parentElement) {
      const color = parse(getComputedStyle(each).backgroundColor);
      if (color.length === 3 || color[3] === 1) return getComputedStyle(each).backgroundColor;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = [...document.querySelectorAll("body *")].filter((node) => node.checkVisibility() && !node.disabled
    && !node.matches(".sr-only, noscript, option")
    && [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim()));
  return texts.filter((node) => {
    const pair = [luminance(getComputedStyle(node).color), luminance(behind(node))].sort((a, b) => b - a);
    return (pair[0] + 0.05) / (pair[1] + 0.05) < 4.5;
  }).map((node) => node.outerHTML);
})()"""
"""Elements whose own text stands out less than WCAG 2.2 (AA) asks: 4.5 to 1."""
