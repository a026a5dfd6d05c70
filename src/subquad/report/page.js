"use strict";
// Sorts and filters the leaderboard, hides rows in figures, and says what a mark is that is pointed at.
// The page is whole without it: a table in order of the score, figures with all rows.

const each = (selector, act, within = document) => within.querySelectorAll(selector).forEach(act);

// The buttons stand in the column heads, which tell the order to screen readers.
function sortable(table) {
  const body = table.tBodies[0];
  const value = (row, place) => row.cells[place]?.dataset.value ?? "";
  const order = { ascending: 1, descending: -1 };

  function sort(head, direction) {
    const compare = (a, b) => {
      const [left, right] = [value(a, head.cellIndex), value(b, head.cellIndex)];
      if (left === "" || right === "") return (left === "") - (right === "");
      return order[direction] * (isNaN(left) || isNaN(right) ? left.localeCompare(right) : left - right);
    };
    body.append(...[...body.rows].sort(compare));
    each("th[aria-sort]", (other) => other.setAttribute("aria-sort", "none"), table);
    head.setAttribute("aria-sort", direction);
  }

  each("th[data-first]", (head) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(head.firstChild);
    head.prepend(button);
    if (!head.hasAttribute("aria-sort")) head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const opposite = { ascending: "descending", descending: "ascending" };
      sort(head, opposite[head.getAttribute("aria-sort")] ?? head.dataset.first);
    });
  }, table);
}

// Rows in which every word that is typed appears.
function filterable(box, table) {
  const field = box.querySelector("input");
  const rows = [...table.tBodies[0].rows];
  box.hidden = false;
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = row.cells[0].textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    box.querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  });
}

function hides(button) {
  const { hides: row } = button.dataset;
  button.disabled = false;
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(shown));
    each(".plot [data-row]", (mark) => mark.dataset.row === row && mark.classList.toggle("off", !shown),
      button.closest("figure"));
  });
}

// What browsers show of <title> after a while is shown at once.
function explained(title, tip) {
  const mark = title.parentNode;
  const words = title.textContent;
  title.remove();
  mark.addEventListener("pointermove", ({ clientX, clientY }) => {
    tip.textContent = words;
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(clientX + 14, innerWidth - width - 8))}px`;
    tip.style.top = `${clientY > height + 24 ? clientY - height - 14 : clientY + 20}px`;
  });
  mark.addEventListener("pointerleave", () => { tip.hidden = true; });
}

const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
tip.setAttribute("aria-hidden", "true"); // the figures' descriptions say the same
document.body.append(tip);

each(".filter", (box) => {
  const board = box.parentNode.querySelector(".board");
  sortable(board);
  filterable(box, board);
});
each("button[data-hides]", hides);
each(".plot title", (title) => explained(title, tip));
