"use strict";
const at = (id) => document.getElementById(id);
const FIELDS = ["system", "temperature", "top_p", "max_tokens", "seed"];
const LIVE_MS = 1000, IDLE_MS = 10000, NEAR_PX = 60;
const STOPPED = "The server does not answer. Start it again, or see its log; what you wrote is kept here.";
const ENDS = {
  length: (tokens) => `Cut after ${tokens} tokens. Allow more under Settings, or ask it to go on.`,
  context: () => "Cut: the model's context is full. Begin a new conversation.",
  time: () => "Cut at the server's time limit.",
};
let models = [], running = null, asking = 0, lost = false;
let conversation = kept("session", "conversation") || []; // {role, content, thinking, note}

function kept(store, name) {
  try { return JSON.parse(window[store + "Storage"].getItem("merino." + name)); } catch { return null; }
}

function keep(store, name, value) {
  try { window[store + "Storage"].setItem("merino." + name, JSON.stringify(value)); } catch { /* private mode */ }
}

function headers() {
  const fields = {"Content-Type": "application/json"};
  if (at("key").value) fields.Authorization = "Bearer " + at("key").value.trim();
  return fields;
}

// What a user reads about a response that is none.
async function failure(response) {
  let message = "";
  try { message = (await response.json()).error.message; } catch { /* not of this server */ }
  if (response.status === 401) {
    showSettings(true);
    at("key").focus();
    return "This server needs an API key. Enter it under Settings, then send again.";
  }
  const wait = response.headers.get("Retry-After");
  if (response.status === 429) return `The server is busy with other requests. Send again in ${wait || "a few"} s.`;
  if (response.status === 503 && message === "Loading model") {
    return `The model is being loaded. Send again in ${wait || "a few"} s.`;
  }
  return message ? `The server refuses: ${message}` : `The server answers with status ${response.status}.`;
}

async function get(path) {
  const response = await fetch(path, {headers: headers()});
  if (!response.ok) throw new Error(await failure(response));
  return response.json();
}

function notice(text, action = "", call = null) {
  const [words, button] = at("notice").children;
  words.textContent = text;
  button.textContent = action;
  button.hidden = !action;
  button.onclick = () => { notice(""); call(); };
  at("notice").classList.toggle("shown", text !== "");
}

function showSettings(shown) {
  at("settings").hidden = !shown;
  at("set").setAttribute("aria-expanded", String(shown));
}

const chosen = () => models.find((model) => model.id === at("model").value) || models[0];
const chats = () => !chosen() || chosen().meta.chat;

function hint() {
  at("hint").hidden = conversation.length > 0;
  at("hint").textContent = models.length === 0 ? "" : chats()
    ? "Write a message below. It is answered on this machine; nothing leaves it for the internet."
    : "This model was not trained to chat: it continues what you write. Begin a text below.";
  at("text").placeholder = chats() ? "Message" : "Beginning of a text";
  const {n_ctx_train: context, defaults = {}} = chosen() ? chosen().meta : {};
  for (const [name, value] of Object.entries(defaults)) if (at(name)) at(name).placeholder = value;
  if (context) at("max_tokens").placeholder = "up to " + context;
}

function element(kind, name, text = "") {
  const node = document.createElement(kind);
  node.className = name;
  node.textContent = text;
  return node;
}

function button(name, text, call) {
  const node = element("button", name, text);
  node.type = "button";
  node.onclick = call;
  return node;
}

// A button that copies a text. The clipboard's own interface needs TLS, or a server on this machine.
function copier(text) {
  const node = button("copy", "Copy", async () => {
    try { await navigator.clipboard.writeText(text()); } catch {
      const box = document.body.appendChild(element("textarea", "unseen"));
      box.value = text();
      box.select();
      document.execCommand("copy");
      box.remove();
      node.focus();
    }
    node.textContent = "Copied";
    setTimeout(() => { node.textContent = "Copy"; }, 1500);
  });
  return node;
}

// Markdown as nodes. What is none of it stays text, so nothing is lost, and nothing becomes markup of the page.
const MARKS = /(`+)(.*?[^`])\1(?!`)|\*\*(\S|\S.*?\S)\*\*|\*([^\s*]|[^\s*][^*]*[^\s*])\*|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)/s;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+)(.*)$/, RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const BLOCK = /^\s*(`{3,}|~{3,}|#{1,6} |> ?)/;
const marked = (node, text) => {
  for (let found; (found = MARKS.exec(text)); text = text.slice(found.index + found[0].length)) {
    const [, , code, strong, soft, label, address] = found;
    node.append(text.slice(0, found.index));
    if (code) node.append(element("code", "", code));
    else if (address) node.append(Object.assign(marked(element("a", ""), label), {href: address, rel: "noreferrer", target: "_blank"}));
    else node.append(marked(element(strong ? "strong" : "em", ""), strong || soft));
  }
  node.append(text);
  return node;
};
const cells = (line) => line.trim().replace(/^\|/, "").replace(/\|$/, "").split("|").map((cell) => cell.trim());
const isTable = (lines, at) => lines[at].includes("|") && at + 1 < lines.length && lines[at + 1].includes("-") && RULE.test(lines[at + 1])
  && cells(lines[at]).length === cells(lines[at + 1]).length;

function markdown(node, text) {
  const lines = text.split("\n"), take = (test) => { const start = at; while (at < lines.length && test(lines[at])) at++; return lines.slice(start, at); };
  let at = 0;
  while (at < lines.length) {
    const line = lines[at], [, fence = ""] = /^\s*(`{3,}|~{3,})/.exec(line) || [], item = ITEM.exec(line), head = /^\s*(#{1,6}) +(.*)$/.exec(line);
    if (!line.trim()) at++;
    else if (fence) {
      at++;
      const code = take((one) => !one.trim().startsWith(fence)).join("\n"), block = node.appendChild(element("div", "code"));
      at++;
      block.append(element("pre", ""), copier(() => code));
      Object.assign(block.firstChild, {tabIndex: 0}).append(element("code", "", code));
    } else if (head) {
      at++;
      node.append(marked(element("h" + Math.min(6, head[1].length + 2), ""), head[2]));
    } else if (/^\s*>/.test(line)) {
      node.append(markdown(element("blockquote", ""), take((one) => /^\s*>/.test(one)).map((one) => one.replace(/^\s*> ?/, "")).join("\n")));
    } else if (isTable(lines, at)) {
      const [names, , ...rows] = take((one) => one.includes("|")), table = element("table", "");
      for (const [index, row] of [names, ...rows].entries()) {
        table.append(element("tr", ""));
        table.lastChild.append(...cells(row).map((cell) => marked(element(index ? "td" : "th", ""), cell)));
      }
      node.appendChild(element("div", "table")).append(table);
    } else if (item) {
      const ordered = /\d/.test(item[2]), list = node.appendChild(element(ordered ? "ol" : "ul", "")), indent = item[1].length;
      if (ordered) list.start = parseInt(item[2], 10);
      for (let own; at < lines.length && (own = ITEM.exec(lines[at])) && own[1].length <= indent + 1 && /\d/.test(own[2]) === ordered;) {
        const depth = own[1].length + own[2].length;
        at++;
        const inner = take((one) => !one.trim() ? at + 1 < lines.length && /^\s/.test(lines[at + 1]) && lines[at + 1].search(/\S/) > indent : one.search(/\S/) > indent + 1);
        const cut = (one) => one.slice(Math.min(one.search(/\S|$/), depth + 1));
        list.append(markdown(element("li", ""), [own[4], ...inner.map(cut)].join("\n")));
      }
    } else {
      const first = at++;
      take((one) => one.trim() && !BLOCK.test(one) && !ITEM.test(one) && !isTable(lines, at));
      node.append(marked(element("p", ""), lines.slice(first, at).join("\n")));
    }
  }
  return node;
}

// The list item of a message, with functions that add to it.
function shown(message) {
  const item = element("li", message.role), who = element("h2", "", message.role === "user" ? "You" : message.model || "Model");
  const text = element("div", "text"), note = element("p", "note", message.note);
  const details = element("details", ""), thought = element("div", "thought", message.thinking);
  if (message.role === "user") who.classList.add("unseen");
  details.append(element("summary", "", "Thinking"), thought);
  details.hidden = !message.thinking;
  note.hidden = !message.note;
  item.append(who, details, text, note);
  const write = () => {
    if (message.role === "user" || !chats()) text.textContent = message.content;
    else text.replaceChildren(...markdown(element("div", ""), message.content).childNodes);
  };
  write();
  return {
    item,
    say: (more) => { message.content += more; write(); },
    think: (more) => { message.thinking += more; details.hidden = false; thought.textContent = message.thinking; },
    note: (words) => { message.note = words; note.textContent = words; note.hidden = !words; },
  };
}

function draw() {
  at("conversation").className = chats() ? "" : "continued";
  at("conversation").replaceChildren(...conversation.map((message) => shown(message).item));
  for (const [index, item] of chats() ? [...at("conversation").children].entries() : []) {
    if (conversation[index].role === "assistant") item.append(copier(() => conversation[index].content));
  }
  const last = conversation[conversation.length - 1];
  if (last && last.role === "assistant") {
    const item = at("conversation").lastChild;
    item.append(button("again", "Again", () => { const old = conversation.pop(); answer(() => conversation.push(old)); }));
    if (!chats()) item.append(copier(() => conversation.map((message) => message.content).join("")));
  }
  keep("session", "conversation", conversation);
  hint();
}

function atTheEnd(change) {
  const box = at("scroll"), near = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_PX;
  change();
  if (near) box.scrollTop = box.scrollHeight;
}

function bodyOf() {
  const system = at("system").value, body = {model: chosen() && chosen().id, stream: true, timings_per_token: true};
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if (at(name).value !== "") body[name] = Number(at(name).value);
  }
  if (chats()) {
    const past = conversation.map(({role, content}) => ({role, content}));
    return {...body, messages: system ? [{role: "system", content: system}, ...past] : past};
  }
  if (!body.max_tokens) body.max_tokens = (chosen() && chosen().meta.n_ctx_train) || 256;
  return {...body, prompt: system + conversation.map((message) => message.content).join("")};
}

// Each event of a stream: a comment as {comment}, the rest as the JSON that it has. Ends with an error where it is cut.
async function* events(response) {
  const reader = response.body.getReader(), decoder = new TextDecoder();
  for (let text = "", done = false; !done;) {
    const read = await reader.read();
    done = read.done;
    text += done ? "" : decoder.decode(read.value, {stream: true});
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const line = text.slice(0, end);
      if (line === "data: [DONE]") return;
      yield line.startsWith("data: ") ? JSON.parse(line.slice(6)) : {comment: line.slice(1).trim()};
    }
  }
  throw new TypeError("the stream was cut");
}

const seconds = (ms) => (ms / 1000).toFixed(ms < 10000 ? 2 : 0) + " s";
const speed = (rate) => at("speed").textContent = rate.toFixed(rate < 100 ? 1 : 0) + " tokens/s";

// undo: what is done where nothing came, so that nothing is lost.
async function answer(undo) {
  if (running) return;
  const message = {role: "assistant", model: chosen() && chosen().id, content: "", thinking: "", note: ""};
  const control = running = new AbortController(), began = performance.now();
  let first = 0, before = 0, fault = "", last = {};
  notice("");
  busy(true);
  draw();
  const view = shown(message);
  view.item.setAttribute("aria-busy", "true");
  at("conversation").append(view.item);
  at("scroll").scrollTop = at("scroll").scrollHeight;
  at("status").textContent = "The model is answering.";
  try {
    const response = await fetch(chats() ? "/v1/chat/completions" : "/v1/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(bodyOf()), signal: control.signal});
    if (!response.ok) throw new Error(await failure(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(`The server ended the answer: ${event.error.message}`);
      if (event.comment) {
        const read = /^(\d+) of (\d+)/.exec(event.comment);
        if (!first) view.note(read ? `Reading: ${read[1]} of ${read[2]} tokens` : "Waiting for the model…");
        continue;
      }
      const {delta = {}, text = ""} = event.choices[0] || {}, content = delta.content || text;
      if (content || delta.reasoning_content) {
        const count = event.timings ? event.timings.predicted_n : 0;
        if (!first) {
          [first, before] = [performance.now(), count];
          view.note("");
          at("first").textContent = seconds(first - began);
        }
        if (count > before + 5) speed(1000 * (count - before) / (performance.now() - first));
        atTheEnd(() => { if (content) view.say(content); else view.think(delta.reasoning_content); });
      }
      if (event.stop_reason) last = event;
    }
  } catch (error) {
    if (control.signal.aborted) fault = "Stopped.";
    else fault = error instanceof TypeError ? STOPPED : error.message;
  }
  running = null;
  ended(message, view, last, fault, undo, control.signal.aborted);
}

function ended(message, view, last, fault, undo, aborted) {
  const {timings, energy, stop_reason: why} = last, came = message.content || message.thinking;
  if (timings && timings.predicted_per_second) speed(timings.predicted_per_second);
  figure("energy", energy ? energy.joules.toFixed(1) + " J" : "");
  view.note(fault || (ENDS[why] ? ENDS[why](timings.predicted_n) : came ? "" : "The model ended without a word."));
  if (fault && !came) undo();
  else conversation.push(message);
  if (fault && !aborted) notice(fault);
  at("status").textContent = [message.content, message.note].join(" ");
  busy(false);
  atTheEnd(draw);
  live();
}

function busy(is) {
  const had = document.activeElement;
  at("send").hidden = is;
  at("stop").hidden = !is;
  at("new").disabled = at("model").disabled = is;
  if ((is && had === at("send")) || (!is && had === at("stop")) || !document.body.contains(had)) {
    at(is ? "stop" : "text").focus();
  }
}

function send() {
  const text = at("text").value;
  if (running || !text.trim()) return;
  if (!at("settings").checkValidity()) {
    showSettings(true);
    at("settings").reportValidity();
    return;
  }
  conversation.push({role: "user", content: text});
  write("");
  answer(() => { conversation.pop(); if (!at("text").value) write(text); });
}

function write(text) {
  const box = at("text");
  box.value = text;
  box.style.height = "auto";
  box.style.height = box.scrollHeight + 2 + "px";
}

function figure(name, text) {
  at(name).textContent = text;
  at(name).parentElement.hidden = !text;
}

// Memory and temperature, again and again; and whether the server is there.
async function live() {
  clearTimeout(asking);
  try {
    if (models.length === 0) await open();
    const stats = await get("/v1/stats");
    at("memory").textContent = Math.round(stats.rss_mb || stats.peak_rss_mb) + " MB";
    figure("heat", stats.temperatures_c ? Math.round(Math.max(...Object.values(stats.temperatures_c))) + " °C" : "");
    if (lost) notice("");
    lost = false;
  } catch (error) {
    if (!running && !lost) notice(error instanceof TypeError ? STOPPED : error.message);
    lost = true;
  }
  asking = setTimeout(live, running ? LIVE_MS : lost ? 3 * LIVE_MS : IDLE_MS);
}

async function open() {
  models = (await get("/v1/models")).data;
  at("model").replaceChildren(...models.map((model) => new Option(model.id, model.id)));
  const before = kept("local", "model");
  if (models.some((model) => model.id === before)) at("model").value = before;
  if (!running) draw();
  if (document.activeElement === document.body && matchMedia("(pointer: fine)").matches) at("text").focus();
}

for (const name of FIELDS) {
  at(name).value = (kept("local", "settings") || {})[name] || "";
}
at("key").value = kept("session", "key") || "";
at("settings").addEventListener("input", () => {
  keep("local", "settings", Object.fromEntries(FIELDS.map((name) => [name, at(name).value])));
  keep("session", "key", at("key").value);
});
at("key").addEventListener("change", live);
at("settings").addEventListener("submit", (event) => event.preventDefault());
at("set").addEventListener("click", () => showSettings(at("settings").hidden));
at("model").addEventListener("change", () => { keep("local", "model", at("model").value); draw(); });
at("new").addEventListener("click", () => {
  const before = conversation;
  conversation = [];
  draw();
  if (before.length) notice("A new conversation.", "Undo", () => { conversation = before; draw(); at("text").focus(); });
  at("text").focus();
});
at("write").addEventListener("submit", (event) => { event.preventDefault(); send(); });
at("stop").addEventListener("click", () => running && running.abort());
at("text").addEventListener("input", () => write(at("text").value));
at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && running) running.abort(); });
draw();
at("scroll").scrollTop = at("scroll").scrollHeight;
live();
