// Texts come from models and files, so they are only ever set as text. Every grade is sent as it is given, and the page
// moves on only after the server has written it.
"use strict";
const $ = (id) => document.getElementById(id);
const state = { rater: "", items: [], done: {}, aspects: {}, tie: "", at: 0, row: 0, draft: null, busy: false };

function make(tag, text = "", kind = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function text(content) {
  const made = make("div", content || "(no text)", "text");
  made.dir = "auto";
  return made;
}

function tell(what, bad = false) {
  $("status").textContent = what;
  $("status").className = bad ? "bad" : "";
}

async function ask(path, options = {}) {
  let reply;
  try {
    reply = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Start the command again and open the address that it prints.");
  }
  const content = await reply.json();
  if (!reply.ok) throw new Error(content.error);
  return content;
}

async function begin(rater) {
  const found = await ask("items", { headers: { "X-Rater": encodeURIComponent(rater) } });
  Object.assign(state, found, { rater });
  $("enter").hidden = true;
  $("who").textContent = `as ${rater}`;
  next(-1);
}

// Go to the next item after `from` that is not graded, or say that there is none.
function next(from) {
  const order = [...state.items.keys()].map((i) => (from + 1 + i) % state.items.length);
  const open = order.find((i) => !(state.items[i].id in state.done));
  if (open === undefined) {
    $("item").hidden = true;
    $("end").hidden = false;
    count();
  } else show(open);
}

function count() {
  const done = state.items.filter((item) => item.id in state.done).length;
  $("bar").max = state.items.length;
  $("bar").value = done;
  $("count").textContent = `${done} of ${state.items.length} graded`;
}

function show(at) {
  const item = state.items[at], before = state.done[item.id];
  Object.assign(state, { at, row: 0 });
  state.draft = { grades: {}, preferred: null, note: before ? before.note : "" };
  for (const answer of item.answers) state.draft.grades[answer.id] = {};
  if (before) {
    for (const answer of before.answers) state.draft.grades[answer.id] = { ...answer.grades };
    state.draft.preferred = before.preferred;
  }
  $("item").hidden = false;
  $("end").hidden = true;
  $("question").textContent = item.question;
  $("history").replaceChildren(...item.history.map(([who, said]) => text(`${who}: ${said}`)));
  const golds = item.gold.length ? item.gold.map(text) : [make("p", "None: the passages do not answer this question.")];
  $("golds").replaceChildren(...golds);
  $("passages").replaceChildren(...item.passages.map(passage));
  $("read").querySelector("summary").firstChild.textContent = `Passages (${item.passages.length}) `;
  $("answers").replaceChildren(...item.answers.map(card));
  $("better").hidden = item.answers.length < 2;
  $("pairkeys").hidden = item.answers.length < 2;
  $("better").replaceChildren(...(item.answers.length < 2 ? [] : [choice(item)]));
  $("note").value = state.draft.note;
  mark();
  count();
  window.scrollTo(0, 0);
  $("question").focus({ preventScroll: true });
}

function passage(found) {
  const made = make("li");
  if (found.gold) made.append(make("span", "gold", "chip"));
  made.append(text(found.text));
  return made;
}

function card(answer, i, answers) {
  const made = make("section", "", "answer");
  made.append(make("h2", answers.length > 1 ? `Answer ${"AB"[i]}` : "Answer"), text(answer.text));
  for (const [aspect, question] of Object.entries(state.aspects)) made.append(line(answer.id, aspect, question));
  return made;
}

function line(id, aspect, question) {
  const made = make("div", "", "row"), label = make("span", aspect[0].toUpperCase() + aspect.slice(1));
  label.append(make("small", question));
  const buttons = make("span");
  for (const [word, value] of [["Yes", true], ["No", false]])
    buttons.append(button(word, () => (state.draft.grades[id][aspect] === value), () => grade(id, aspect, value)));
  made.dataset.answer = id;
  made.dataset.aspect = aspect;
  made.append(label, buttons);
  return made;
}

function choice(item) {
  const made = make("div", "", "row"), buttons = make("span");
  const values = [["A", item.answers[0].id], ["B", item.answers[1].id], ["No difference", state.tie]];
  for (const [word, value] of values)
    buttons.append(button(word, () => state.draft.preferred === value, () => prefer(value)));
  made.append(make("span", "Which answer is better?"), buttons);
  return made;
}

function button(word, pressed, act) {
  const made = make("button", word);
  made.type = "button";
  made.pressed = pressed;
  made.addEventListener("click", act);
  return made;
}

const rows = () => [...document.querySelectorAll("#item .row")];

// Show which buttons are pressed and which line the keys are for.
function mark() {
  rows().forEach((row, i) => {
    row.classList.toggle("here", i === state.row);
    for (const one of row.querySelectorAll("button")) one.setAttribute("aria-pressed", one.pressed());
  });
}

function grade(id, aspect, value) {
  const grades = state.draft.grades[id], at = rows().findIndex((r) => r.dataset.answer === id && r.dataset.aspect === aspect);
  if (grades[aspect] === value) delete grades[aspect];
  else grades[aspect] = value;
  state.row = Math.min(at + 1, rows().length - 1);
  mark();
}

function prefer(value) {
  state.draft.preferred = state.draft.preferred === value ? null : value;
  mark();
}

async function save() {
  const item = state.items[state.at], { grades, preferred } = state.draft;
  const any = Object.values(grades).some((given) => Object.keys(given).length) || preferred;
  if (state.busy || !any) {
    if (!any) tell("Nothing is graded yet: press y or n, or click Yes or No.");
    return;
  }
  state.busy = true;
  try {
    // Two systems with the same answer: shown once, and neither is better.
    const tied = item.answers.length === 1 && item.pair ? state.tie : preferred;
    const sent = { id: item.id, rater: state.rater, grades, preferred: tied, note: $("note").value };
    const body = JSON.stringify(sent);
    const { saved } = await ask("grade", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    state.done[item.id] = saved;
    tell("Saved");
    setTimeout(() => $("status").textContent === "Saved" && tell(""), 1200);
    next(state.at);
  } catch (error) {
    tell(`Not saved: ${error.message}`, true);
  } finally {
    state.busy = false;
  }
}

const step = (by) => show((state.at + by + state.items.length) % state.items.length);
const open = (id) => { $(id).open = !$(id).open; };

function here(value) {
  const row = rows()[state.row];
  if (row && row.dataset.aspect) grade(row.dataset.answer, row.dataset.aspect, value);
}

function pick(i) {
  const { answers } = state.items[state.at];
  if (answers.length > 1) prefer(i < 2 ? answers[i].id : state.tie);
}

function move(by) {
  state.row = Math.max(0, Math.min(rows().length - 1, state.row + by));
  mark();
  rows()[state.row].scrollIntoView({ block: "nearest" });
}

const KEYS = {
  y: () => here(true), n: () => here(false), a: () => pick(0), b: () => pick(1), t: () => pick(2),
  g: () => open("gold"), p: () => open("read"), m: () => $("note").focus(), Enter: save,
  ArrowLeft: () => step(-1), ArrowRight: () => step(1), ArrowUp: () => move(-1), ArrowDown: () => move(1),
};

document.addEventListener("keydown", (event) => {
  if ($("item").hidden || event.altKey || event.metaKey) return;
  if (event.target === $("note")) {
    if (event.key === "Escape") $("note").blur();
    if (event.key === "Enter" && event.ctrlKey) save();
    return;
  }
  const onButton = event.target instanceof HTMLButtonElement || event.target.tagName === "SUMMARY";
  if (event.ctrlKey || !(event.key in KEYS) || (onButton && event.key === "Enter")) return;
  event.preventDefault();
  KEYS[event.key]();
});
$("save").addEventListener("click", save);
$("back").addEventListener("click", () => step(-1));
$("skip").addEventListener("click", () => step(1));
$("again").addEventListener("click", () => show(0));
$("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  begin($("name").value.trim()).catch((error) => tell(error.message, true));
});
ask("items").then(({ raters }) => {
  for (const [name, done] of Object.entries(raters)) {
    const known = make("button", `${name} (${done})`);
    known.type = "button";
    known.addEventListener("click", () => begin(name).catch((error) => tell(error.message, true)));
    $("known").append(known);
  }
  $("name").focus();
}).catch((error) => tell(error.message, true));
