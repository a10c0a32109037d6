"use strict";
// Searching and sorting, for comfort: without it the page says the same.
(() => {
  const table = document.getElementById("slides-table");
  if (!table) return;
  const body = table.tBodies[0];
  const cards = document.getElementById("cards");
  const search = document.getElementById("search");
  const status = document.getElementById("status");
  const said = document.getElementById("found");
  const rows = Array.from(body.rows);
  const cardOf = (row) => document.getElementById("s" + row.dataset.number);
  document.getElementById("tools").hidden = false;

  const filter = () => {
    const wanted = search.value.trim().toLowerCase();
    let found = 0;
    for (const row of rows) {
      const fits = (!status.value || row.dataset.status === status.value || row.dataset.judged === status.value)
        && row.textContent.toLowerCase().includes(wanted);
      row.hidden = !fits;
      const card = cardOf(row);
      if (card) card.hidden = !fits;
      found += fits ? 1 : 0;
    }
    said.textContent = found === rows.length ? "" : found + " of " + rows.length;
  };
  search.addEventListener("input", filter);
  status.addEventListener("change", filter);

  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => {
        const value = row.cells[column].dataset.value;
        return value === undefined ? row.cells[column].textContent.trim() : Number(value);
      };
      rows.sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
        return (up ? order : -order) || Number(a.dataset.number) - Number(b.dataset.number);
      });
      for (const row of rows) {
        body.append(row);
        const card = cardOf(row);
        if (card) cards.append(card);
      }
    });
  });
})();
