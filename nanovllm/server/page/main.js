// The page itself: shows conversations, sends questions, shows answers as they come. Wires the other files together.

import { streamChat } from "./api.js";
import { element, markdown } from "./markdown.js";
import { Settings } from "./settings.js";
import { Store } from "./store.js";

const find = (id) => document.getElementById(id);
const store = new Store();
const settings = new Settings(store, showError);
let current = store.conversations[0] ?? store.create();
let running = null; // the AbortController of the answer that is being made

function showError(text) {
  find("error-text").textContent = text;
  find("error").hidden = !text;
}

function say(text) {
  find("status").textContent = text;
}

async function copy(source, button) {
  try {
    await navigator.clipboard.writeText(source);
    button.textContent = "Copied";
    say("The code is copied.");
  } catch {
    showError("The browser does not let this page copy. Select the text and copy it by hand.");
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

function showAll() {
  find("title").textContent = current.title;
  document.title = `${current.title} · nanovllm`;
  find("welcome").hidden = current.messages.length > 0;
  find("messages").replaceChildren(...current.messages.map((message) => messageNode(message)));
  for (const id of ["rename", "export", "delete"]) find(id).disabled = !current.messages.length || running !== null;
  find("new-chat").disabled = running !== null;
  showList();
  find("scroller").scrollTop = find("scroller").scrollHeight;
}

function showList() {
  const items = store.conversations.filter((each) => each.messages.length).map((conversation) => {
    const button = element("button", "", conversation.title);
    button.type = "button";
    button.disabled = running !== null && conversation !== current;
    if (conversation === current) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => open(conversation));
    const item = element("li");
    item.append(button);
    return item;
  });
  find("conversations").replaceChildren(...items);
}

function open(conversation) {
  current = conversation;
  showError("");
  showAll();
  showSidebar(false);
  find("question").focus();
}

function messageNode(message) {
  const node = element("li", "message " + message.role);
  node.append(element("div", "who", message.role === "user" ? "You" : message.model || "Model"));
  fillMessage(node, message, false);
  return node;
}

// Draws what the message holds now; isRunning: more may come.
function fillMessage(node, message, isRunning) {
  const isOpen = node.querySelector("details")?.open ?? false;
  node.replaceChildren(node.firstChild);
  if (message.reasoning) {
    const thought = element("details", "thought");
    thought.open = isOpen;
    thought.append(element("summary", "", isRunning && !message.content ? "Thinking…" : "Thoughts"), element("div", "", message.reasoning));
    node.append(thought);
  }
  const body = element("div", "body" + (isRunning ? " waiting" : ""));
  if (message.role === "user") body.textContent = message.content;
  else body.append(markdown(message.content, copy));
  node.append(body);
  if (message.meta) node.append(element("p", "meta", message.meta));
}

async function ask(question) {
  if (running || !question.trim()) return;
  showError("");
  if (!current.messages.length) {
    current.title = question.trim().split("\n")[0].slice(0, 60);
  }
  current.messages.push({ role: "user", content: question });
  const body = { ...settings.options, messages: conversationSoFar(), stream: true, stream_options: { include_usage: true } };
  const answer = { role: "assistant", content: "", model: body.model };
  current.messages.push(answer);
  current.updated = Date.now();
  store.conversations = [current, ...store.conversations.filter((each) => each !== current)];
  keep();
  running = new AbortController();
  showAll();
  showRunning(true);
  say("The model is answering.");
  const isDone = await receive(body, answer, find("messages").lastChild);
  running = null;
  showRunning(false);
  if (!answer.content && !answer.reasoning && !isDone) undo(question);
  keep();
  showAll();
  if (isDone) say("The answer is complete: " + answer.content);
}

// An answer that never began is taken back, and its question stands in the field again.
function undo(question) {
  current.messages.splice(-2);
  if (!current.messages.length) current.title = "New conversation";
  if (!find("question").value) find("question").value = question;
}

function conversationSoFar() {
  const told = current.messages.map(({ role, content }) => ({ role, content }));
  return settings.system ? [{ role: "system", content: settings.system }, ...told] : told;
}

// Reads an answer into `answer` and draws it, once a frame at most. True when it came to its end.
async function receive(body, answer, node) {
  const counter = new Counter();
  let frame = 0;
  const draw = () => {
    frame = 0;
    const scroller = find("scroller");
    const isAtEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
    answer.meta = counter.text();
    fillMessage(node, answer, true);
    if (isAtEnd) scroller.scrollTop = scroller.scrollHeight;
  };
  let isDone = false;
  try {
    for await (const chunk of streamChat(body, settings.key, running.signal)) {
      counter.add(chunk);
      for (const { delta } of chunk.choices) {
        answer.content += delta.content ?? "";
        answer.reasoning = (answer.reasoning ?? "") + (delta.reasoning_content ?? "");
      }
      frame ||= requestAnimationFrame(draw);
    }
    isDone = true;
  } catch (error) {
    counter.end = error.name === "AbortError" ? "stopped" : "broken off";
    if (error.name === "AbortError") say("Stopped.");
    else showError(error.message);
  }
  cancelAnimationFrame(frame);
  answer.meta = counter.text();
  return isDone;
}

// Tokens, tokens per second and how an answer ended. Counts chunks until the server tells the tokens.
class Counter {
  constructor() {
    this.asked = performance.now();
    this.first = this.last = null;
    this.numChunks = 0;
    this.usage = null;
    this.end = "";
  }

  add(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    const [choice] = chunk.choices;
    if (!choice) return;
    if (choice.finish_reason === "length") this.end = "ended at the longest length";
    if (!choice.delta.content && !choice.delta.reasoning_content) return;
    this.numChunks += 1;
    this.last = performance.now();
    this.first ??= this.last;
  }

  text() {
    if (this.first === null) return this.end;
    const numTokens = this.usage?.completion_tokens ?? this.numChunks;
    const seconds = (this.last - this.first) / 1000;
    const parts = [`${this.usage ? "" : "about "}${numTokens} tokens`];
    if (numTokens > 1 && seconds > 0.02) parts.push(`${((numTokens - 1) / seconds).toFixed(1)} tokens/s`);
    parts.push(`first after ${((this.first - this.asked) / 1000).toFixed(2)} s`);
    if (this.usage) parts.push(`prompt ${this.usage.prompt_tokens} tokens`);
    if (this.end) parts.push(this.end);
    return parts.join(" · ");
  }
}

function keep() {
  if (!store.save()) showError("The browser has no room for this conversation. Delete old ones, or export it.");
}

function showRunning(isRunning) {
  find("send").hidden = isRunning;
  find("stop").hidden = !isRunning;
  if (document.activeElement === document.body || document.activeElement === find("stop")) find("question").focus();
}

function showSidebar(isOpen) {
  find("sidebar").classList.toggle("open", isOpen);
  find("show-sidebar").setAttribute("aria-expanded", String(isOpen));
}

function growQuestion() {
  const field = find("question");
  field.style.height = "auto";
  field.style.height = field.scrollHeight + "px";
}

function send() {
  if (running) return;
  const question = find("question").value;
  if (!question.trim()) return;
  find("question").value = "";
  growQuestion();
  find("question").focus();
  ask(question);
}

function exportConversation() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(current, null, 2)], { type: "application/json" }));
  link.download = current.title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60) + ".json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

find("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
find("question").addEventListener("input", growQuestion);
find("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (running) running.abort();
  else if (find("sidebar").classList.contains("open")) {
    showSidebar(false);
    find("show-sidebar").focus();
  }
});
window.addEventListener("storage", () => {
  store.reload(current);
  showList();
});
find("stop").addEventListener("click", () => running?.abort());
find("dismiss").addEventListener("click", () => {
  showError("");
  find("question").focus();
});
find("new-chat").addEventListener("click", () => open(current.messages.length ? store.create() : current));
find("export").addEventListener("click", exportConversation);
find("rename").addEventListener("click", () => {
  find("new-name").value = current.title;
  find("rename-dialog").showModal();
  find("new-name").select();
});
find("rename-form").addEventListener("submit", () => {
  current.title = find("new-name").value.trim() || current.title;
  keep();
  showAll();
});
find("cancel-rename").addEventListener("click", () => find("rename-dialog").close());
find("delete").addEventListener("click", () => find("delete-dialog").showModal());
find("cancel-delete").addEventListener("click", () => find("delete-dialog").close());
find("delete-form").addEventListener("submit", () => {
  store.remove(current);
  open(store.conversations[0] ?? store.create());
});
find("show-sidebar").addEventListener("click", () => {
  showSidebar(true);
  find("new-chat").focus();
});
find("hide-sidebar").addEventListener("click", () => {
  showSidebar(false);
  find("show-sidebar").focus();
});
for (const button of find("suggestions").querySelectorAll("button")) button.addEventListener("click", () => ask(button.textContent));

showAll();
find("question").focus();
