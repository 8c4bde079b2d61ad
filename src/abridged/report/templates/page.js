"use strict";
// The page reads well without this script; it adds sorting, copying and plots.
const every = (selector, root = document) => Array.from(root.querySelectorAll(selector));
const announce = (text) => { document.getElementById("announce").textContent = text; };

// Sort: numbers by their exact value, the largest first; text by the alphabet; what is missing always last.
function sortable(table) {
  const body = table.tBodies[0];
  const original = Array.from(body.rows);
  every("thead th", table).forEach((head, column) => {
    const numeric = head.classList.contains("n");
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const orders = numeric ? ["descending", "ascending", null] : ["ascending", "descending", null];
      const order = orders[(orders.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
      every("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
      if (order) head.setAttribute("aria-sort", order);
      body.append(...(order ? sorted(original, column, numeric, order === "ascending" ? 1 : -1) : original));
      announce(order ? `Sorted by ${button.firstChild.textContent}, ${order}` : "In network order");
    });
  });
}

function sorted(rows, column, numeric, sign) {
  const key = (row) => {
    const cell = row.cells[column];
    return numeric ? parseFloat(cell.dataset.value ?? "NaN") : cell.textContent;
  };
  return rows.map((row) => [key(row), row]).sort(([a], [b]) => {
    if (!numeric) return sign * a.localeCompare(b, "en", { numeric: true });
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return sign * (a - b);
  }).map(([, row]) => row);
}

// Copy: the clipboard where the browser grants it; else the old way, through a selection.
async function copy(button) {
  const code = button.parentElement.querySelector("code");
  let done = false;
  try {
    await navigator.clipboard.writeText(code.textContent);
    done = true;
  } catch {
    const selection = getSelection();
    selection.selectAllChildren(code);
    done = document.execCommand("copy");
    if (done) selection.removeAllRanges();
  }
  button.textContent = done ? "Copied" : "Press Ctrl+C";
  announce(done ? "Copied to the clipboard" : "Selected; press Ctrl+C");
  setTimeout(() => { button.textContent = "Copy"; }, 1800);
}

// Plots: the library is unpacked after the page is shown, and run under the hash that the page's policy names.
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

const narrow = matchMedia("(max-width: 600px)");
const coarse = matchMedia("(pointer: coarse)");

function draw(canvas, figure) {
  const layout = { ...figure.layout, autosize: true, dragmode: coarse.matches || narrow.matches ? false : "zoom" };
  const config = {
    responsive: true, displaylogo: false, displayModeBar: coarse.matches ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
  };
  return Plotly.react(canvas, figure.data, layout, config);
}

async function plots() {
  const script = document.createElement("script");
  script.textContent = await unpack(document.getElementById("library").textContent);
  document.head.append(script);
  for (const plot of JSON.parse(document.getElementById("plots").textContent)) {
    const figure = every("figure[data-plot]").find((each) => each.dataset.plot === plot.name);
    const canvas = figure.querySelector(".canvas");
    const choices = every("button[data-choice]", figure);
    canvas.replaceChildren();
    await draw(canvas, plot.choices[0]);
    choices.forEach((button) => button.addEventListener("click", () => {
      choices.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      draw(canvas, plot.choices[Number(button.dataset.choice)]);
    }));
    every(".choices", figure).forEach((group) => { group.hidden = false; });
  }
  addEventListener("beforeprint", () => every(".canvas.js-plotly-plot").forEach((canvas) => Plotly.Plots.resize(canvas)));
}

every("table[data-sortable]").forEach(sortable);
every("button.copy").forEach((button) => {
  button.hidden = false;
  button.addEventListener("click", () => copy(button));
});
let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = every("details:not(.layers, .meanings)").filter((each) => !each.open);
  unfolded.forEach((each) => { each.open = true; });
});
addEventListener("afterprint", () => unfolded.forEach((each) => { each.open = false; }));
if (document.getElementById("library")) {
  const failed = (error) => {
    every(".canvas .empty").forEach((text) => { text.textContent = "The plot could not be drawn here. The tables hold the same numbers."; });
    console.warn(`Plots were not drawn: ${error}`);
  };
  requestAnimationFrame(() => setTimeout(() => plots().catch(failed), 0));
}
