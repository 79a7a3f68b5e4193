// What both pages share: the history, which lives in the address, calls to the service, pictures of items.
// Texts from the service reach the page as text nodes alone.

export const $ = (id) => document.getElementById(id);

/** An element with attributes and children; strings become text. Attributes that are null are left out. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// ---- The history: item tokens in time order, after "#history=" in the address. Back is undo.

export function history() {
  const given = location.hash.match(/^#history=(.+)$/);
  return given ? given[1].split(",").map(decoded).filter(Boolean) : [];
}

function decoded(token) {
  try {
    return decodeURIComponent(token);
  } catch {
    return ""; // a damaged address
  }
}

/** Write the history into the address; whoever listens to `hashchange` shows it. */
export function setHistory(tokens) {
  location.hash = tokens.length ? `history=${tokens.map(encodeURIComponent).join(",")}` : "";
}

/** Append an item; one that is there already becomes the latest. */
export const add = (token) => setHistory([...history().filter((other) => other !== token), token]);

function keepInLinks() {
  for (const link of document.querySelectorAll("[data-keeps-history]")) link.hash = location.hash;
}

// ---- The service

/** No answer (`status` 0) or one that is no success; `wait` are the seconds to wait, where the service says so. */
class Problem extends Error {
  constructor(message, status, wait = null) {
    super(message);
    Object.assign(this, { status, wait });
  }
}

const KEY = "api-key";
const keyHeader = () => (sessionStorage.getItem(KEY) ? { "X-API-Key": sessionStorage.getItem(KEY) } : {});

/** Ask the service; the answer as plain data, or a `Problem`. */
export async function call(path, { body = null, signal = null } = {}) {
  const type = body ? { "Content-Type": "application/json" } : {};
  let response;
  try {
    const how = { method: body ? "POST" : "GET", headers: { ...type, ...keyHeader() }, signal };
    response = await fetch(path, { ...how, body: body && JSON.stringify(body) });
  } catch (error) {
    throw signal?.aborted ? error : new Problem("The service cannot be reached.", 0);
  }
  if (response.ok) return response.json();
  const said = await response.json().catch(() => ({}));
  const wait = Number(response.headers.get("Retry-After")) || null;
  throw new Problem(said.error ?? `The service answered ${response.status}.`, response.status, wait);
}

let again = null;

/** Say in `#problem` what went wrong, with what a person can do; what may pass by itself is tried again. */
export function showProblem(problem, retry) {
  const busy = problem.status === 503 || problem.status === 429;
  const wait = busy ? (problem.wait ?? 2) : problem.status === 0 ? 5 : null;
  const button = element("button", { type: "button" }, "Try again");
  button.onclick = retry;
  const says = busy ? "The service is busy." : problem.message;
  $("problem").replaceChildren(element("p", {}, wait ? `${says} Trying again in ${wait} s.` : says));
  $("problem").append(problem.status === 401 ? keyForm(retry) : button);
  $("problem").hidden = false;
  clearTimeout(again);
  if (wait) again = setTimeout(retry, wait * 1000);
}

export function hideProblem() {
  clearTimeout(again);
  $("problem").hidden = true;
}

function keyForm(retry) {
  const input = element("input", { type: "password", autocomplete: "off", id: "api-key" });
  const form = element("form", { class: "key" }, element("label", { for: "api-key" }, "API key"), input);
  form.append(element("button", {}, "Use it"));
  form.onsubmit = (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, input.value);
    retry();
  };
  return form;
}

// ---- Items

export const nameOf = (item) => item.title || item.item;

/** What the first codes hold, asked for once. */
export function codesOfCatalogue() {
  asked ??= call("/catalogue/codes").then(({ codes }) => codes);
  asked.catch(() => (asked = null));
  return asked;
}

let asked = null;

/** An item's picture, or its initials on the colour of its first code. */
export function picture(item) {
  const words = nameOf(item).split(/[^\p{L}\p{N}]+/u).filter(Boolean);
  const telling = words.filter((word) => !/^\p{N}+$/u.test(word)); // a year is no initial
  const initials = (telling.length ? telling : words).slice(0, 2).map((word) => [...word][0].toUpperCase());
  const shown = element("span", { class: "picture", "aria-hidden": "true" }, initials.join(""));
  const paint = (held) => held && shown.classList.add(`colour-${held.colour}`);
  codesOfCatalogue().then((codes) => paint(codes.find(({ code }) => code === item.code)), () => {});
  if (item.image) shown.append(imageOf(item.image));
  return shown;
}

/** An image over the initials; without one they stay. */
function imageOf(path) {
  const image = element("img", { alt: "", loading: "lazy" });
  image.onerror = () => image.remove();
  if (!sessionStorage.getItem(KEY)) image.src = path;
  else // an image asks for its file without the key
    fetch(path, { headers: keyHeader() })
      .then((response) => response.blob())
      .then((file) => (image.src = URL.createObjectURL(file)), image.onerror);
  return image;
}

/** What every page begins with: the model's name, links that keep the history, a skip link that leaves it alone. */
export function begin(show) {
  keepInLinks();
  addEventListener("hashchange", () => {
    keepInLinks();
    show();
  });
  document.querySelector(".skip").onclick = (event) => {
    event.preventDefault();
    document.querySelector(event.target.getAttribute("href")).focus();
  };
  const named = ({ model, dataset, items }) => `${model} on ${dataset}, ${items.toLocaleString("en")} items`;
  call("/health").then((health) => ($("model").textContent = named(health)), () => {});
  show();
}
