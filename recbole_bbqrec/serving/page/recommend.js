// The page at "/": items found by words, a history built of them, recommendations with what spoke for them.

import { $, add, begin, call, codesOfCatalogue, element, nameOf, picture } from "./common.js";
import { hideProblem, history, setHistory, showProblem } from "./common.js";

const K = 12;
const N_STARTERS = 8;
const SOON = 120; // milliseconds without a key before a search begins

// What is said of a signal, before and after the name of the history's item; see `WORDS` of second_stage/reasons.py.
const SENTENCES = {
  "came next after": ["came next after ", ""],
  "came 2 places after": ["came two places after ", ""],
  "came 3 places after": ["came three places after ", ""],
  "often follows": ["often follows ", ""],
  "follows by way of another item": ["follows ", " by way of another item"],
  "often near": ["often near ", ""],
  "near by way of another item": ["near ", " by way of another item"],
  "bought together": ["often together with ", ""],
  "what follows by content": ["its content follows ", ""],
  "similar codes": ["codes similar to ", ""],
  "codes that follow": ["its codes follow those of ", ""],
  "the model's own score": ["the model's own score, because\u00a0of ", ""],
};
const OF_NO_ITEM = {
  "popular": "popular with everyone",
  "popularity of the last item": "as popular as what goes with the last item",
  "codes that the model expects": "its codes are what the model expects next",
  "the model's own score": "the model's own score, by the whole history",
  "length of the history": "fits a history of this length",
  "already in the history": "already in your history",
};

/** The sentence under a recommendation: text nodes and the title of the item that spoke for it. */
function sentence({ signal, by }) {
  const [, modality] = signal.match(/^similar (.+)$/) ?? [];
  const around = SENTENCES[signal] ?? (modality && [`${modality} similar to `, ""]);
  if (!by || !around) return [OF_NO_ITEM[signal] ?? signal];
  return [around[0], element("cite", {}, nameOf(by)), around[1]];
}

// ---- What is known of items: title, image and codes, asked for once

const known = new Map();

async function details(token) {
  if (!known.has(token)) {
    const asked = call(`/items/${encodeURIComponent(token)}`);
    known.set(token, asked);
    asked.catch(() => known.delete(token));
  }
  return known.get(token);
}

// ---- Search: a combobox with a list of options

let searching = new AbortController();
let timer = null;
let chosen = -1;
const options = () => [...$("found").children];

async function search() {
  searching.abort();
  searching = new AbortController();
  const { signal } = searching;
  const words = $("words").value.trim();
  if (!words) return showFound([], "");
  try {
    const { items } = await call(`/items?q=${encodeURIComponent(words)}&limit=20`, { signal });
    showFound(items, items.length ? "" : `No title has “${words}”.`);
    if (items.length) $("search-status").textContent = `${items.length} found`;
  } catch (problem) {
    if (!signal.aborted) showFound([], problem.message);
  }
}

function showFound(items, said) {
  $("found").replaceChildren(
    ...items.map((item, at) => {
      const option = element("li", { role: "option", id: `found-${at}`, "aria-selected": "false" });
      option.append(picture(item), element("span", { class: "title" }, nameOf(item)));
      option.onmousedown = (event) => event.preventDefault(); // the field keeps the focus
      option.onclick = () => choose(item.item);
      return option;
    }),
  );
  $("search-status").textContent = said;
  open(items.length > 0);
}

function open(yes) {
  $("found").hidden = !yes;
  $("words").setAttribute("aria-expanded", String(yes));
  mark(-1);
}

function mark(at) {
  chosen = at;
  options().forEach((option, other) => option.setAttribute("aria-selected", String(other === at)));
  if (at >= 0) options()[at].scrollIntoView({ block: "nearest" });
  $("words").setAttribute("aria-activedescendant", at >= 0 ? `found-${at}` : "");
}

function choose(token) {
  open(false);
  $("search-status").textContent = "";
  $("words").select();
  add(token);
}

$("words").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(search, SOON);
});
$("words").addEventListener("blur", () => open(false));
$("words").addEventListener("focus", () => open(options().length > 0));
$("words").addEventListener("keydown", (event) => {
  const count = options().length;
  if (event.key === "Escape") return open(false);
  if (!count) return;
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    if ($("found").hidden) open(true);
    mark(event.key === "ArrowDown" ? (chosen + 1) % count : (chosen <= 0 ? count : chosen) - 1);
  } else if (event.key === "Enter" && !$("found").hidden) {
    options()[Math.max(chosen, 0)].click();
  }
});

// ---- History: the latest first; arrows move, Delete removes

async function showHistory() {
  const tokens = history();
  $("clear").hidden = !tokens.length;
  $("history-hint").hidden = tokens.length > 0;
  const focused = placeOfFocus($("history"));
  const unknown = (token) => ({ status }) => ({ item: token, missing: status === 404 });
  const found = await Promise.all(tokens.map((token) => details(token).catch(unknown(token))));
  if (tokens.join() !== history().join()) return; // a later history is on its way
  $("history").replaceChildren(...found.reverse().map(historyRow));
  if (focused >= 0) (rows()[Math.min(focused, tokens.length - 1)]?.lastChild ?? $("words")).focus();
}

const rows = () => [...$("history").children];

/** Place of the row that has the focus among those of a list; -1 where none has. */
const placeOfFocus = (list) => [...list.children].findIndex((row) => row.contains(document.activeElement));

function historyRow(item) {
  const remove = element("button", { class: "remove", type: "button", "aria-label": `Remove ${nameOf(item)}` }, "×");
  remove.onclick = () => setHistory(history().filter((other) => other !== item.item));
  const text = element("span", { class: "title" }, nameOf(item));
  if (item.missing) text.append(element("small", {}, "not in the catalogue"));
  else if (item.codes?.length) text.append(codeStrip(item.codes));
  return element("li", { "data-item": item.item }, picture(item), text, remove);
}

$("history").addEventListener("keydown", (event) => {
  const at = rows().indexOf(event.target.closest("li"));
  if (event.key === "Delete" || event.key === "Backspace") event.target.click();
  else if (event.key === "ArrowDown") rows()[at + 1]?.lastChild.focus();
  else if (event.key === "ArrowUp") rows()[at - 1]?.lastChild.focus();
  else return;
  event.preventDefault();
});
$("clear").addEventListener("click", () => {
  setHistory([]);
  $("words").focus();
});

/** An item's codes as small chips, in the order of their places; of those not in `shared` only the place is shown. */
function codeStrip(codes, shared = null) {
  const strip = element("span", { class: "codes" });
  const caption = shared ? "same codes" : "codes";
  const words = [];
  const chips = codes.map((code, place) => {
    const text = code < 0 ? "–" : String(code);
    if (shared && !shared.includes(place)) return element("span", { class: "code other", "aria-hidden": "true" }, "·");
    words.push(`${text} at place ${place + 1}`);
    return element("span", { class: "code", "aria-hidden": "true" }, text);
  });
  if (shared) chips.unshift(element("span", { class: "caption", "aria-hidden": "true" }, caption));
  strip.append(element("span", { class: "unseen" }, `${caption} ${words.join(", ")}`), ...chips);
  return strip;
}

// ---- Recommendations

let asking = new AbortController();
let cards = new Map(); // by item token: a card that stays keeps its picture

async function recommend() {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  const tokens = history();
  $("start").hidden = tokens.length > 0;
  if (!tokens.length) return showCards([]);
  $("recommended").setAttribute("aria-busy", "true");
  try {
    const answer = await call("/recommend", { body: { history: tokens, k: K, explain: true }, signal });
    const sayers = new Set(answer.items.filter(({ why }) => why?.shared_codes.length).map(({ why }) => why.by.item));
    const codes = new Map(await Promise.all([...sayers].map(async (token) => [token, (await details(token)).codes])));
    if (signal.aborted) return;
    showCards(answer.items.map((item) => card(item, codes)));
  } catch (problem) {
    if (signal.aborted) return;
    $("recommended").setAttribute("aria-busy", "false");
    showProblem(problem, show);
  }
}

function showCards(made) {
  hideProblem();
  const list = $("recommended");
  const focused = placeOfFocus(list);
  list.replaceChildren(...made);
  cards = new Map(made.map((shown) => [shown.dataset.item, shown]));
  list.setAttribute("aria-busy", "false");
  if (focused >= 0) (list.children[focused]?.querySelector("button") ?? list).focus({ preventScroll: true });
  const first = made.slice(0, 3).map((shown) => shown.querySelector("button").textContent);
  $("next-hint").hidden = !made.length;
  $("status").classList.toggle("unseen", made.length > 0); // the cards say it to those who see them
  $("status").textContent = made.length ? `${made.length} recommendations, first ${first.join(", ")}` : "";
  if (!made.length && history().length) $("status").textContent = "Nothing to recommend after this history.";
}

function card(item, codes) {
  const button = element("button", { type: "button", class: "title", title: "Add to the history" }, nameOf(item));
  button.onclick = () => add(item.item);
  const text = element("div", { class: "text" }, button);
  if (item.why) text.append(...why(item.why, codes));
  const kept = cards.get(item.item)?.querySelector(".picture");
  return element("li", { "data-item": item.item }, kept ?? picture(item), text);
}

function why(reason, codes) {
  const percent = Math.round(reason.share * 100);
  const bar = element("span", { class: "bar" }, element("span"));
  bar.firstChild.style.width = `${percent}%`;
  const share = element("div", { class: "share", title: "Its part of all that speaks for this item" });
  share.append(bar, `${percent} %`);
  const parts = [element("p", { class: "why" }, ...sentence(reason)), share];
  const shared = codes.get(reason.by?.item);
  if (shared && reason.shared_codes.length) parts.push(codeStrip(shared, reason.shared_codes));
  return parts;
}

// ---- Where to begin: items of a few first codes, from the fullest to the emptiest

async function showStarters() {
  const codes = await codesOfCatalogue();
  const step = Math.ceil(codes.length / N_STARTERS);
  const items = codes.filter((_, at) => at % step === 0).map(({ items }) => items[0]);
  $("starters").replaceChildren(
    ...items.map((item) => {
      const button = element("button", { type: "button" }, nameOf(item));
      button.onclick = () => add(item.item);
      return element("li", {}, button);
    }),
  );
}

function show() {
  showHistory();
  recommend();
  if (!history().length && !$("starters").children.length) showStarters().catch(() => {}); // a help, no more
}

begin(show);
search(); // for what was typed before this script was there
