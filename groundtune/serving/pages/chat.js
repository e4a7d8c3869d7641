// The chat page. Texts come from models, files and people: they are only ever set as text, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const turns = []; // {question, blind, again, answers: [{id, text, cited, sources}], chosen}
let running = null; // the AbortController of the answer that is being written

function copyOf(id) {
  return $(id).content.firstElementChild.cloneNode(true);
}

function button(label, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = label;
  made.addEventListener("click", act);
  return made;
}

async function request(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const key = sessionStorage.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  const options = body ? { method: "POST", headers, body: JSON.stringify(body), signal } : { headers, signal };
  const reply = await fetch(path, options);
  if (reply.status === 401) needKey();
  if (!reply.ok) {
    const told = await reply.json().catch(() => null);
    throw new Error(told?.error?.message || `The server answered with status ${reply.status}.`);
  }
  return reply;
}

// The key, the settings and the examples

function needKey() {
  $("key").hidden = false;
  $("ask").hidden = $("start").hidden = true;
  $("key-text").focus();
}

$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key-text").value.trim());
  $("key-text").value = "";
  begin();
});

async function begin() {
  let settings;
  try {
    settings = await (await request("settings")).json();
  } catch (error) {
    $("model").textContent = error.message;
    return;
  }
  $("key").hidden = true;
  $("ask").hidden = $("start").hidden = false;
  $("start").hidden = turns.length > 0;
  $("model").textContent = settings.model;
  $("compare").hidden = !settings.compares;
  $("examples").replaceChildren(...settings.questions.map((text) => button(text, () => ask(text))));
  $("question").focus();
}

// Questions

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("question").value.trim();
  if (text && !running) {
    $("question").value = "";
    ask(text);
  }
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) running.abort();
});
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", () => {
  running?.abort();
  turns.length = 0;
  $("dialogue").replaceChildren();
  $("start").hidden = false;
  $("new").hidden = true;
  $("question").focus();
});

function history(before) {
  return before.flatMap((turn) => {
    const answer = turn.answers[turn.chosen]?.text;
    return answer ? [{ role: "user", content: turn.question }, { role: "assistant", content: answer }] : [];
  });
}

async function ask(question) {
  if (running) return;
  const turn = { question, blind: !$("compare").hidden && $("blind").checked, answers: [], chosen: 0, again: 0 };
  turn.before = history(turns);
  turn.filter = $("filter").value.trim();
  turns.push(turn);
  turn.shown = copyOf("turn");
  turn.shown.querySelector("h2").textContent = question;
  $("dialogue").append(turn.shown);
  $("start").hidden = true;
  $("new").hidden = false;
  await answer(turn);
}

async function answer(turn) {
  running = new AbortController();
  $("send").hidden = true;
  $("stop").hidden = false;
  note(turn, "");
  const models = turn.blind ? blindPair(turn) : [""];
  const box = turn.shown.querySelector(".answers");
  box.classList.toggle("two", turn.blind);
  turn.answers = models.map((model, i) => ({ model, side: "AB"[i], text: "", sources: [], shown: copyOf("answer") }));
  box.replaceChildren(...turn.answers.map((one) => one.shown));
  for (const one of turn.answers) {
    one.shown.setAttribute("aria-busy", "true");
    const title = one.shown.querySelector("h3");
    title.hidden = !turn.blind;
    title.textContent = `Answer ${one.side}`;
  }
  turn.shown.scrollIntoView({ block: "start" });
  try {
    await Promise.all(turn.answers.map((one) => stream(turn, one, running.signal)));
    $("said").textContent = turn.answers.map((one) => (turn.blind ? `Answer ${one.side}: ` : "") + one.text).join("\n");
    offerVotes(turn);
  } catch (error) {
    running.abort(); // the other of two answers, too
    const stopped = error.name === "AbortError";
    note(turn, stopped ? "Stopped." : error.message, !stopped);
    offerVotes(turn, false);
  } finally {
    running = null;
    $("send").hidden = false;
    $("stop").hidden = true;
    for (const one of turn.answers) one.shown.removeAttribute("aria-busy");
  }
}

function blindPair(turn) {
  turn.pair = crypto.getRandomValues(new Uint32Array(4)).reduce((text, n) => text + n.toString(16).padStart(8, "0"), "");
  return [`blind:${turn.pair}:0`, `blind:${turn.pair}:1`];
}

async function stream(turn, one, signal) {
  const messages = [...turn.before, { role: "user", content: turn.question }];
  const reply = await request("v1/chat/completions", { model: one.model, messages, stream: true, filter: turn.filter, again: turn.again }, signal);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let ended = false;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) ended = heard(turn, one, event) || ended;
  }
  if (!ended) throw new Error("The connection was lost before the answer was complete.");
}

// One event of the stream; whether it is the last.
function heard(turn, one, event) {
  if (!event.startsWith("data: ")) return false;
  const data = event.slice(6);
  if (data === "[DONE]") return true;
  const chunk = JSON.parse(data);
  if (chunk.error) throw new Error(chunk.error.message);
  one.id = chunk.id;
  if (chunk.sources) {
    one.sources = chunk.sources;
    showSources(turn);
  }
  const choice = chunk.choices[0];
  if (chunk.cited) one.shown.querySelector(".text").replaceChildren(...withNumbers(turn, one.text, choice.delta.annotations));
  if (chunk.sampled) {
    const line = one.shown.querySelector(".sampled");
    line.hidden = false;
    line.textContent = `Drawn at random (temperature ${chunk.sampled.temperature}, seed ${chunk.sampled.seed}), not the most likely answer.`;
  }
  if (choice?.delta.content) {
    one.text += choice.delta.content;
    one.shown.querySelector(".text").textContent = one.text;
  }
  if (choice?.finish_reason === "length") one.shown.querySelector(".cut").hidden = false;
  return false;
}

// Passages

function showSources(turn) {
  const sources = turn.answers.find((one) => one.sources.length)?.sources || [];
  const section = turn.shown.querySelector(".sources");
  const open = [...section.querySelectorAll("details")].map((one) => one.open);
  section.hidden = false;
  section.querySelector("h3").textContent =
    sources.length === 0 ? "No passage was found" : `Read ${sources.length} ${sources.length === 1 ? "passage" : "passages"}`;
  section.querySelector("ol").replaceChildren(
    ...sources.map((source, i) => {
      const item = copyOf("source");
      item.querySelector(".title").textContent = `${i + 1}. ${source.title}`;
      item.querySelector(".place").textContent = `${source.place} (${source.score.toFixed(2)})`.trim();
      item.querySelector("details").open = open[i] ?? i === 0;
      const used = turn.answers.flatMap((one) => one.sources[i]?.used || []);
      item.querySelector(".text").replaceChildren(...marked(source.text, used));
      return item;
    }),
  );
}

// The answer with the number of each passage, as a button, behind the sentence that cites it.
function withNumbers(turn, text, annotations) {
  const characters = Array.from(text); // places count characters, of which JavaScript's strings may have two for one
  const parts = [];
  let end = 0;
  for (const { url_citation: { end_index, number } } of annotations) {
    parts.push(characters.slice(end, end_index).join(""), cite(turn, number));
    end = end_index;
  }
  return [...parts, characters.slice(end).join("")];
}

function cite(turn, number) {
  const made = button(number, () => {
    const passage = turn.shown.querySelectorAll(".sources details")[number - 1];
    passage.open = true;
    passage.querySelector("summary").focus();
  });
  made.className = "cite";
  made.setAttribute("aria-label", `Passage ${number}`);
  return made;
}

function marked(text, used) {
  const characters = Array.from(text);
  const parts = [];
  let end = 0;
  for (const [from, to] of [...used].sort((a, b) => a[0] - b[0])) {
    if (from < end) continue;
    parts.push(characters.slice(end, from).join(""));
    const mark = document.createElement("mark");
    mark.textContent = characters.slice(from, to).join("");
    parts.push(mark);
    end = to;
  }
  return [...parts, characters.slice(end).join("")];
}

// Votes

const ONE = [["up", "Good answer"], ["down", "Bad answer"]];
const TWO = [["left", "A is better"], ["right", "B is better"], ["both", "Both are good"], ["neither", "Neither is good"]];

function offerVotes(turn, complete = true) {
  const votes = turn.shown.querySelector(".votes");
  const form = turn.shown.querySelector(".comment");
  votes.hidden = false;
  votes.setAttribute("aria-label", "Your opinion of the answer");
  const choices = complete ? (turn.blind ? TWO : ONE) : [];
  const buttons = choices.map(([vote, label]) => {
    const made = button(label, () => {
      turn.vote = vote;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === made));
      if (vote === "left" || vote === "right") turn.chosen = vote === "left" ? 0 : 1;
      form.hidden = form.hidden && vote !== "down" && vote !== "neither";
      save(turn);
    });
    made.setAttribute("aria-pressed", "false");
    return made;
  });
  const more = complete ? [button("Comment", () => { form.hidden = !form.hidden; if (!form.hidden) form.comment.focus(); })] : [];
  const again = button("Ask again", () => {
    if (running) return;
    votes.hidden = form.hidden = true;
    turn.vote = "";
    turn.again += complete; // an answer that failed is asked for as before
    form.reset();
    answer(turn);
  });
  if (complete) again.title = "Another answer, drawn at random";
  votes.replaceChildren(...buttons, ...more, again);
  form.onsubmit = (event) => {
    event.preventDefault();
    save(turn);
  };
}

async function save(turn) {
  const form = turn.shown.querySelector(".comment");
  const before = turn.before.map((one) => ({ speaker: one.role, message: one.content }));
  const shown = turn.answers.map((one) => ({
    question: turn.question, history: before, answer: one.text, sources: one.sources.map((source) => source.id), again: turn.again,
  }));
  const said = { vote: turn.vote || "", comment: form.comment.value, correction: form.correction.value };
  note(turn, "Saving …");
  try {
    await request("feedback", { id: turn.blind ? turn.pair : turn.answers[0].id, ...said, shown });
    note(turn, "Saved. Thank you.");
  } catch (error) {
    note(turn, `Not saved: ${error.message}`, true);
  }
}

function note(turn, text, wrong = false) {
  const line = turn.shown.querySelector(".note");
  line.textContent = text;
  line.classList.toggle("wrong", wrong);
}

begin();
