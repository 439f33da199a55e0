// The server's API: models and streamed answers. Errors are Errors whose message a reader can act on.

export async function listModels(key) {
  const answer = await request("v1/models", { headers: headers(key) });
  return (await answer.json()).data.map((model) => model.id);
}

// Yields the data of each event of an answer. body: of /v1/chat/completions. signal: ends it.
export async function* streamChat(body, key, signal) {
  const options = { method: "POST", signal, body: JSON.stringify(body) };
  options.headers = { ...headers(key), "Content-Type": "application/json" };
  const answer = await request("v1/chat/completions", options);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("The server broke off before the answer was complete.");
    text += value;
    const events = text.split(/\r?\n\r?\n/);
    text = events.pop();
    for (const event of events) {
      const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const told = JSON.parse(data);
      if (told.error) throw new Error(told.error.message);
      yield told;
    }
  }
}

function headers(key) {
  return key ? { Authorization: "Bearer " + key } : {};
}

async function request(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is it still running?");
  }
  if (answer.ok) return answer;
  const told = await answer.json().then((body) => body.error?.message, () => null);
  const hint = answer.status === 401 ? " Enter the key under Settings." : "";
  throw new Error((told || `The server answered ${answer.status}.`) + hint);
}
