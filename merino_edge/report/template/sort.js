"use strict";
// Tables sort by a click or a key press on a column's title: numbers from the largest, texts from the first letter.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.firstElementChild.addEventListener("click", () => {
      const numeric = head.classList.contains("number");
      const before = head.getAttribute("aria-sort");
      const down = before ? before === "ascending" : numeric;
      const key = row => row.cells[column].dataset.order;
      const rows = [...table.tBodies[0].rows].sort((one, other) =>
        numeric ? key(one) - key(other) : key(one).localeCompare(key(other), "en", { numeric: true }));
      table.tBodies[0].append(...(down ? rows.reverse() : rows));
      heads.forEach(each => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
    });
  });
}
