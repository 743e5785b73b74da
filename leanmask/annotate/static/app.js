// The page: puts the parts together, and turns keys, clicks and touches into actions.

import * as api from "./api.js";
import { Boxes } from "./boxes.js";
import { Chooser } from "./chooser.js";
import { Desk, sender } from "./desk.js";
import { Outbox } from "./outbox.js";
import { Points } from "./points.js";
import { Review } from "./review.js";
import { tabName } from "./tab.js";
import { Stopwatch, duration } from "./timing.js";

const NOUNS = { points: "objects", boxes: "images", review: "pseudo-labels" };
const KINDS = { points: Points, boxes: Boxes, review: Review };
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEY_NAMES = { " ": "space", ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", Backspace: "⌫", Enter: "⏎" };
const AGAIN_MS = 4000;

const $ = (id) => document.getElementById(id);
const canvases = { object: $("object"), zoom: $("zoom") };
let desk;
let mode = null;
let chooser;
let busy = false;
let waiting = null;
let advancing = null; // the one search for a next unit that counts; another search, or an undo, ends it

const keyName = (key) => KEY_NAMES[key] ?? key.toUpperCase();

function say(text, choices = []) {
  $("text").textContent = text;
  $("choices").replaceChildren(...choices.map(({ label, action }) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label;
    button.addEventListener("click", action);
    return button;
  }));
  $("message").hidden = false;
  $("choices").querySelector("button")?.focus();
}

function quiet() {
  $("message").hidden = true;
}

function annotatorOf(names) {
  const known = sessionStorage.getItem("leanmask-annotator");
  if (names.length === 1 || names.includes(known)) return Promise.resolve(names.includes(known) ? known : names[0]);
  return new Promise((resolve) => {
    const pick = (name) => {
      sessionStorage.setItem("leanmask-annotator", name);
      quiet();
      resolve(name);
    };
    say("Who is labelling?", names.map((name) => ({ label: name, action: () => pick(name) })));
  });
}

function showActions(kind) {
  const stage = $("stage");
  if (stage.dataset.kind === kind) return;
  stage.dataset.kind = kind;
  $("actions").replaceChildren(...KINDS[kind].actions.map(({ name, label, keys, className }) => {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.action = name;
    button.className = className ?? "";
    button.append(label, Object.assign(document.createElement("kbd"), { textContent: keyName(keys[0]) }));
    button.setAttribute("aria-keyshortcuts", keys.map((key) => (key === " " ? "Space" : key)).join(" "));
    button.addEventListener("click", () => act(name));
    return button;
  }));
  const rows = KINDS[kind].actions.map(({ label, keys }) => [label, keys.map(keyName).join("  or  ")]);
  if (kind === "boxes") rows.push(["Move the cross", "arrow keys; with Shift in large steps"]);
  $("legend").replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    row.append(...cells.map((text) => Object.assign(document.createElement("td"), { textContent: text })));
    return row;
  }));
}

function showFigures() {
  const { progress, stopwatch } = desk;
  const seconds = stopwatch.median();
  $("speed").textContent = seconds === null ? "" : `${seconds.toFixed(2)} s per answer`;
  if (!progress) return;
  $("progress").value = progress.units ? progress.units_done / progress.units : 1;
  const left = seconds === null || $("stage").dataset.kind === "boxes" ? "" : `, ${duration(seconds * progress.answers_left)} left`;
  const noun = NOUNS[$("stage").dataset.kind] ?? "";
  $("left").textContent = `${progress.units_done} of ${progress.units} ${noun}${left}`;
}

function showSync(count, failing, refused) {
  const sync = $("sync");
  sync.dataset.state = failing ? "waiting" : refused ? "refused" : "fine";
  const text = failing ? `offline: ${count} kept here, sent again soon` : count > 2 ? `sending ${count}` : "saved";
  sync.textContent = refused ? `${text}; ${refused} refused, kept here` : text;
}

function redraw() {
  if (!mode) return;
  const { category, step } = mode.title();
  if ($("category").textContent !== category) $("category").textContent = category;
  $("step").textContent = step;
  $("file").textContent = mode.unit.name;
  mode.draw(canvases);
  $("stage").dataset.shown = `${mode.unit.kind}:${mode.unit.target}:${mode.place ?? mode.unit.given.length}`;
  showFigures();
}

function begin(unit) {
  halt();
  quiet();
  desk.take(unit);
  mode = desk.modes[unit.kind];
  showActions(unit.kind);
  mode.start(unit);
  desk.recall(unit);
  desk.stopwatch.show();
  redraw();
}

function halt() {
  clearTimeout(waiting);
  advancing = null;
}

async function advance() {
  halt();
  const search = {};
  advancing = search;
  const overtaken = () => advancing !== search;
  try {
    const unit = await desk.next();
    if (overtaken()) return;
    if (unit) begin(unit);
    else await rest(overtaken);
  } catch (error) {
    if (!overtaken()) lost(error);
  }
}

async function rest(overtaken) {
  await desk.outbox.flush();
  const [told, about] = await Promise.all([api.statistics(), api.state()]);
  if (overtaken()) return;
  desk.progress = about.progress;
  const mine = told.speed.filter((item) => item.annotator === desk.annotator);
  const lines = mine.map((item) => `${item.answers} answers, ${(item.median_seconds ?? 0).toFixed(2)} s each`);
  const open = desk.progress?.answers_left > 0;
  const elsewhere = about.annotators.length > 1 ? "Others are working on the rest. What they leave comes here." :
    "Nothing is left for you here. What is open is in another page of yours, or for a second person.";
  const head = open ? elsewhere : "Everything is labelled. Thank you.";
  const broken = desk.progress?.problems;
  const problems = broken ? [`${broken} images or objects cannot be shown and are left out; the reasons are printed at the end.`] : [];
  showFigures();
  say([head, ...lines, ...problems].join("\n"), desk.history.length ? [{ label: "Undo the last answer", action: undo }] : []);
  $("stage").dataset.shown = "nothing";
  if (open) waiting = setTimeout(advance, AGAIN_MS);
}

function lost(error) {
  const refused = error.status === 401 || error.status === 421;
  const hint = refused ? "Open the address that leanmask annotate printed last." : "Trying again. Nothing is lost.";
  say(`The server does not answer: ${error.message}.\n${hint}`);
  waiting = setTimeout(advance, AGAIN_MS);
}

async function act(name) {
  if (busy || chooser.open) return;
  if (name === "undo") {
    undo();
    return;
  }
  if (!mode) return;
  busy = true;
  $("note").textContent = "";
  const { unit } = mode;
  const result = mode.act(name);
  const finished = result instanceof Promise ? await result : result;
  busy = false;
  if (!finished) {
    redraw();
    return;
  }
  desk.finish(unit);
  if (desk.units[0]?.ready) {
    begin(desk.units[0]);
    return;
  }
  mode = null; // what is still on the screen is answered; keys wait for the next unit
  $("step").textContent = "loading";
  $("stage").dataset.shown = "loading";
  await advance();
}

function undo() {
  if (mode?.takeBackClick?.()) {
    redraw();
    return;
  }
  const unit = desk.undo();
  if (!unit) {
    $("note").textContent = "There is nothing to undo.";
    return;
  }
  halt();
  quiet();
  mode = desk.modes[unit.kind];
  showActions(unit.kind);
  if (mode.unit === unit) mode.takeBack();
  else mode.start(unit);
  redraw();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open || chooser?.open) return;
  if (event.key === "?") {
    help();
    return;
  }
  if (!mode && event.key !== "Backspace") return;
  const onButton = event.target instanceof HTMLButtonElement && (event.key === "Enter" || event.key === " ");
  if (onButton) return;
  if (mode?.move && event.key in ARROWS) {
    mode.move(...ARROWS[event.key], event.shiftKey);
    redraw();
    event.preventDefault();
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const found = (mode ? KINDS[mode.unit.kind].actions : Points.actions).find((action) => action.keys.includes(key));
  if (!found) return;
  event.preventDefault();
  if (event.repeat && found.name !== "undo") return; // a key that is held down is one answer
  act(found.name);
}

function help() {
  $("keys").showModal();
  $("help").setAttribute("aria-expanded", "true");
}

function onPointer(event) {
  if (!mode?.point || chooser.open) return;
  const { left, top } = canvases.object.getBoundingClientRect();
  mode.point(event.clientX - left, event.clientY - top);
  if (event.type === "pointerup" && event.button === 0) act("click");
  else redraw();
}

function listen(stopwatch) {
  document.addEventListener("keydown", onKey);
  document.addEventListener("visibilitychange", () => (document.hidden ? stopwatch.hide() : stopwatch.unhide()));
  for (const type of ["pointermove", "pointerdown", "pointerup"]) canvases.object.addEventListener(type, onPointer);
  new ResizeObserver(redraw).observe($("stage"));
  $("help").addEventListener("click", help);
  $("close").addEventListener("click", () => $("keys").close());
  $("keys").addEventListener("close", () => $("help").setAttribute("aria-expanded", "false"));
  addEventListener("online", () => desk.outbox.flush());
}

async function main() {
  const about = await api.state();
  document.title = `${about.name} · leanmask annotate`;
  const annotator = await annotatorOf(about.annotators);
  const stopwatch = new Stopwatch();
  const onProgress = (told) => {
    desk.progress = told.progress;
    showFigures();
  };
  const tab = await tabName();
  const outbox = new Outbox({
    storage: localStorage, prefix: `leanmask:${about.store}`, tab, send: sender(onProgress), changed: showSync,
    refused: (reason) => { $("note").textContent = $("sync").title = `Not saved: ${reason}`; },
  });
  chooser = new Chooser({
    section: $("chooser"), input: $("class"), list: $("matches"), categories: about.categories,
  });
  const modes = {};
  desk = new Desk({
    annotator, tab, outbox, stopwatch, modes, categories: about.categories, redraw,
    note: (text) => { $("note").textContent = text; },
    chooseClass: (label, always) => chooser.choose(label, always).finally(() => $("stage").focus()),
  });
  desk.progress = about.progress;
  for (const [kind, Mode] of Object.entries(KINDS)) modes[kind] = new Mode(desk);
  listen(stopwatch);
  outbox.adopt();
  await advance();
}

main().catch((error) => say(`This page cannot start: ${error.message}.\nOpen the address that leanmask annotate printed.`));
