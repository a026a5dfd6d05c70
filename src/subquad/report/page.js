"use strict";
// Draws the figures that the page holds as JSON, in the colours of the style sheet, and draws them
// again when these change: for dark, for light and for print. A legend's button hides a mechanism.

const root = document.documentElement;
const figures = JSON.parse(document.getElementById("figures").textContent);
const hidden = Object.fromEntries(Object.keys(figures).map((name) => [name, new Set()]));

function coloured(value, style, key = "") {
  if (Array.isArray(value)) return value.map((each) => coloured(each, style, key));
  if (value !== null && typeof value === "object")
    return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, coloured(each, style, name)]));
  const variable = /color$/.test(key) && /^var\((--[a-z0-9-]+)\)$/.exec(value);
  return variable ? style.getPropertyValue(variable[1]).trim() : value;
}

function draw(name) {
  const style = getComputedStyle(root);
  figures[name].forEach((panel, place) => {
    const plot = document.getElementById(`${name}-${place}`);
    const data = coloured(panel.data, style).map((trace) => ({ ...trace, visible: !hidden[name].has(trace.meta) }));
    const layout = coloured(panel.layout, style);
    layout.font.family = getComputedStyle(document.body).fontFamily;
    [layout.width, layout.height] = [plot.clientWidth, plot.clientHeight];
    Plotly.react(plot, data, layout, { displayModeBar: false });
  });
}

function drawAll() {
  Object.keys(figures).forEach(draw);
}

for (const button of document.querySelectorAll(".legend button"))
  button.addEventListener("click", () => {
    const { figure, row } = button.dataset;
    const shown = hidden[figure].delete(row);
    if (!shown) hidden[figure].add(row);
    button.setAttribute("aria-pressed", String(shown));
    draw(figure);
  });

function printing(begins) {
  root.classList.toggle("printing", begins);
  drawAll();
}

let due = 0;
addEventListener("resize", () => {
  cancelAnimationFrame(due);
  due = requestAnimationFrame(drawAll);
});

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
addEventListener("beforeprint", () => printing(true));
addEventListener("afterprint", () => printing(false));
drawAll();
