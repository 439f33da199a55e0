// Markdown as nodes: text in, a DocumentFragment out. No text ever becomes HTML: elements are created, text is text.
// Knows fences, headings, lists, quotes, paragraphs, and inline code, strong, emphasis and http(s) links.

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const BULLET = /^\s{0,3}[-*+]\s+(.*)$/;
const NUMBER = /^\s{0,3}(\d{1,9})[.)]\s+(.*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const INLINE = /(`+)([^`]|[^`][^]*?[^`])\1(?!`)|\*\*(\S(?:[^*]*\S)?)\*\*|\*(\S(?:[^*]*\S)?)\*|\[([^\][]+)\]\((https?:\/\/[^\s()]+)\)/g;
const MAX_QUOTE_DEPTH = 8;

export function markdown(text, onCopy, depth = 0) {
  const out = document.createDocumentFragment();
  const lines = text.split("\n");
  for (let i = 0; i < lines.length; ) i = block(lines, i, out, onCopy, depth);
  return out;
}

function block(lines, i, out, onCopy, depth) {
  const line = lines[i];
  const fence = FENCE.exec(line);
  if (fence) return codeBlock(lines, i, fence, out, onCopy);
  const heading = HEADING.exec(line);
  if (heading) {
    out.append(filled("h" + Math.min(heading[1].length + 2, 5), heading[2]));
    return i + 1;
  }
  if (BULLET.test(line)) return list(lines, i, BULLET, 1, "ul", out);
  if (NUMBER.test(line)) return list(lines, i, NUMBER, 2, "ol", out);
  if (depth < MAX_QUOTE_DEPTH && QUOTE.test(line)) return quote(lines, i, out, onCopy, depth);
  if (!line.trim()) return i + 1;
  return paragraph(lines, i, out, depth);
}

function codeBlock(lines, i, fence, out, onCopy) {
  let end = i + 1;
  const isEnd = (line) => line.trim().startsWith(fence[1]) && !line.trim().slice(fence[1].length).replaceAll(fence[1][0], "");
  while (end < lines.length && !isEnd(lines[end])) end += 1;
  const source = lines.slice(i + 1, end).join("\n");
  const box = element("div", "code");
  const head = element("div", "code-head");
  const copy = element("button", "", "Copy");
  copy.type = "button";
  copy.setAttribute("aria-label", "Copy this code");
  copy.addEventListener("click", () => onCopy(source, copy));
  head.append(element("span", "", fence[2].trim().split(/\s/)[0] || "code"), copy);
  const pre = element("pre");
  pre.tabIndex = 0;
  pre.append(element("code", "", source));
  box.append(head, pre);
  out.append(box);
  return end + 1;
}

function list(lines, i, pattern, group, name, out) {
  const items = element(name);
  const first = name === "ol" ? Number(pattern.exec(lines[i])[1]) : 1;
  if (first !== 1) items.start = first;
  for (; i < lines.length && pattern.test(lines[i]); i += 1) items.append(filled("li", pattern.exec(lines[i])[group]));
  out.append(items);
  return i;
}

function quote(lines, i, out, onCopy, depth) {
  const inner = [];
  for (; i < lines.length && QUOTE.test(lines[i]); i += 1) inner.push(QUOTE.exec(lines[i])[1]);
  const box = element("blockquote");
  box.append(markdown(inner.join("\n"), onCopy, depth + 1));
  out.append(box);
  return i;
}

function paragraph(lines, i, out, depth) {
  const begins = (line) => [FENCE, HEADING, BULLET, NUMBER].some((p) => p.test(line)) || (depth < MAX_QUOTE_DEPTH && QUOTE.test(line));
  const own = [lines[i]];
  for (i += 1; i < lines.length && lines[i].trim() && !begins(lines[i]); i += 1) own.push(lines[i]);
  out.append(filled("p", own.join("\n")));
  return i;
}

function filled(name, text) {
  const node = element(name);
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    addText(node, text.slice(at, match.index));
    at = match.index + match[0].length;
    const [, ticks, code, strong, emphasis, label, address] = match;
    if (ticks) node.append(element("code", "", code));
    else if (strong) node.append(element("strong", "", strong));
    else if (emphasis) node.append(element("em", "", emphasis));
    else {
      const link = element("a", "", label);
      link.href = address;
      link.rel = "noopener noreferrer";
      link.target = "_blank";
      node.append(link);
    }
  }
  addText(node, text.slice(at));
  return node;
}

function addText(node, text) {
  text.split("\n").forEach((line, i) => {
    if (i) node.append(document.createElement("br"));
    if (line) node.append(line);
  });
}

export function element(name, className = "", text = "") {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}
