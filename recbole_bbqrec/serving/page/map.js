// The page at "/map": a point for an item, marked by its first code, and a table of what first codes hold.

import { $, add, begin, call, codesOfCatalogue, element, hideProblem, history, nameOf, showProblem } from "./common.js";

const REACH = 14; // pixels around the pointer in which a point is found
const MARGIN = 16;
const SHAPES = [
  (path, r) => path.arc(0, 0, r, 0, 2 * Math.PI),
  (path, r) => path.rect(-r * 0.9, -r * 0.9, r * 1.8, r * 1.8),
  (path, r) => polygon(path, [[0, -r * 1.2], [r * 1.1, r * 0.8], [-r * 1.1, r * 0.8]]),
  (path, r) => polygon(path, [[0, -r * 1.3], [r * 1.1, 0], [0, r * 1.3], [-r * 1.1, 0]]),
];

const canvas = $("map");
let points = [];
let marks = new Map(); // by code: number of its colour and of its shape
let pointed = null; // the point under the pointer
let code = null; // the code that stands out: under the pointer or the focus, else the one kept by a click
let kept = null;

function polygon(path, corners) {
  corners.forEach(([x, y], at) => (at ? path.lineTo(x, y) : path.moveTo(x, y)));
  path.closePath();
}

// ---- Drawing

const colours = () => {
  const style = getComputedStyle(document.documentElement);
  const named = (name) => style.getPropertyValue(name).trim();
  const codes = Array.from({ length: 8 }, (_, at) => named(`--code-${at}`));
  return { codes, ink: named("--ink"), none: named("--faint") };
};

/** Draw a code's mark. Codes that lie near each other have one colour, and the nearest ones different shapes. */
function mark(context, of, r, palette) {
  const { colour, shape } = marks.get(of) ?? { shape: 0 };
  context.beginPath();
  SHAPES[shape](context, r);
  context.fillStyle = palette.codes[colour] ?? palette.none;
  context.fill();
}

function sized(onto, width, height) {
  onto.width = Math.round(width * devicePixelRatio);
  onto.height = Math.round(height * devicePixelRatio);
  const context = onto.getContext("2d");
  context.scale(devicePixelRatio, devicePixelRatio);
  return context;
}

/** Give every point its place on the canvas, the whole catalogue filling it. */
function place() {
  const { clientWidth: width, clientHeight: height } = canvas;
  const [left, right] = extent(points.map(({ x }) => x));
  const [low, high] = extent(points.map(({ y }) => y));
  for (const point of points) {
    point.across = MARGIN + ((point.x - left) / (right - left || 1)) * (width - 2 * MARGIN);
    point.down = height - MARGIN - ((point.y - low) / (high - low || 1)) * (height - 2 * MARGIN);
  }
}

const extent = (values) => [Math.min(...values), Math.max(...values)];

function draw() {
  const context = sized(canvas, canvas.clientWidth, canvas.clientHeight);
  const palette = colours();
  const chosen = new Set(history());
  const size = points.length > 2000 ? 2.5 : 3.5;
  const one = (point, r, alpha) => {
    context.save();
    context.globalAlpha = alpha;
    context.translate(point.across, point.down);
    mark(context, point.code, r, palette);
    context.restore();
  };
  const ring = (point, r) => {
    context.beginPath();
    context.arc(point.across, point.down, r, 0, 2 * Math.PI);
    context.lineWidth = 2;
    context.strokeStyle = palette.ink;
    context.stroke();
  };
  if (code === null) for (const point of points) one(point, size, 0.75);
  else {
    for (const point of points) if (point.code !== code) one(point, size, 0.12);
    for (const point of points) if (point.code === code) one(point, size + 1.5, 1);
  }
  for (const point of points) if (chosen.has(point.item)) ring(point, 7);
  if (pointed) ring(pointed, 5);
}

function standOut(of) {
  code = of ?? kept;
  for (const row of $("codes").tBodies[0].rows) row.classList.toggle("stands-out", Number(row.dataset.code) === code);
  draw();
}

// ---- The pointer: a title on the way, a click adds. A finger has no way: its first tap shows the title.

function nearest(event) {
  const { left, top } = canvas.getBoundingClientRect();
  const [across, down] = [event.clientX - left, event.clientY - top];
  const distance = (point) => Math.hypot(point.across - across, point.down - down);
  const found = points.reduce((best, point) => (!best || distance(point) < distance(best) ? point : best), null);
  return found && distance(found) <= REACH ? found : null;
}

function point(at) {
  if (at === pointed) return;
  pointed = at;
  canvas.classList.toggle("points", at !== null);
  $("tip").hidden = at === null;
  if (at) {
    const says = at.code === null ? "no code" : `first code ${at.code}, with ${marks.get(at.code).n} items`;
    $("tip").replaceChildren(element("p", {}, element("strong", {}, nameOf(at)), element("small", {}, says)));
    const left = at.across > canvas.clientWidth / 2 ? "-100%" : "0px"; // of the point, where there is more room
    const above = at.down > canvas.clientHeight / 2 ? "-100%" : "0px";
    $("tip").style.transform = `translate(${at.across}px, ${at.down}px) translate(${left}, ${above})`;
  }
  standOut(at?.code ?? null);
}

function take(item) {
  add(item.item);
  const link = element("a", { href: "/" }, "see what comes next");
  link.hash = location.hash;
  $("status").replaceChildren("Added ", element("cite", {}, nameOf(item)), ": ", link, ".");
}

canvas.addEventListener("pointermove", (event) => event.pointerType === "touch" || point(nearest(event)));
canvas.addEventListener("pointerleave", (event) => event.pointerType === "touch" || point(null));
canvas.addEventListener("click", (event) => {
  const at = nearest(event);
  if (at && at === pointed) take(at);
  else point(at);
});

// ---- The table

function row({ code: of, n, items }) {
  const swatch = element("canvas", { class: "mark", width: 14, height: 14, "aria-hidden": "true" });
  const button = element("button", { type: "button", class: "of-code", "aria-pressed": "false" }, swatch, String(of));
  button.onclick = () => {
    kept = kept === of ? null : of;
    for (const other of $("codes").querySelectorAll(".of-code")) {
      other.setAttribute("aria-pressed", String(other === button && kept === of));
    }
    standOut(null);
  };
  const titles = items.map((item) => {
    const title = element("button", { type: "button", class: "link", title: "Add to the history" }, nameOf(item));
    title.onclick = () => take(item);
    title.onfocus = title.onpointerenter = () => point(points.find((at) => at.item === item.item) ?? null);
    title.onblur = title.onpointerleave = () => point(null);
    return element("li", {}, title);
  });
  const made = element("tr", { "data-code": of }, element("th", { scope: "row" }, button));
  made.append(element("td", { class: "number" }, n.toLocaleString("en")));
  made.append(element("td", {}, element("ul", {}, ...titles)));
  made.onpointerenter = () => standOut(of);
  made.onpointerleave = () => standOut(null);
  made.addEventListener("focusin", () => standOut(of));
  made.addEventListener("focusout", () => standOut(null));
  return made;
}

function drawMarks() {
  const palette = colours();
  for (const swatch of document.querySelectorAll("canvas.mark")) {
    const context = sized(swatch, 14, 14);
    context.translate(7, 7);
    mark(context, Number(swatch.closest("tr").dataset.code), 5, palette);
  }
}

// ---- Both

async function load() {
  $("status").textContent = "Drawing the catalogue…";
  try {
    const [map, codes] = await Promise.all([call("/catalogue/map"), codesOfCatalogue()]);
    hideProblem();
    points = map.points;
    marks = new Map(codes.map((held) => [held.code, held]));
    $("codes").tBodies[0].replaceChildren(...codes.map(row));
    $("codes").hidden = !codes.length;
    $("status").textContent = codes.length ? "" : "The items of this model have no codes.";
    place();
    redraw();
  } catch (problem) {
    $("status").textContent = "";
    showProblem(problem, load);
  }
}

function redraw() {
  drawMarks();
  draw();
}

new ResizeObserver(() => {
  place();
  draw();
}).observe(canvas);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
begin(draw);
load();
