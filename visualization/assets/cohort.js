"use strict";
// Sorting and searching of the tables. Cells carry what they are sorted by in data-value; cells without come last.
const tables = [...document.querySelectorAll("table.sortable")];

function sortBy(table, column) {
  const headers = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const header = headers[column], now = header.getAttribute("aria-sort"), first = header.dataset.first || "ascending";
  const rising = now ? now !== "ascending" : first === "ascending";
  for (const other of headers) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const value = (row) => row.cells[column].dataset.value;
  const numeric = header.classList.contains("number");
  const compare = (a, b) => (numeric ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true }));
  const rows = [...body.rows].sort((p, q) => {
    const a = value(p), b = value(q);
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    return rising ? compare(a, b) : compare(b, a);
  });
  body.append(...rows);
}

for (const table of tables)
  [...table.tHead.rows[0].cells].forEach((header, column) =>
    header.querySelector("button")?.addEventListener("click", () => sortBy(table, column)));

// The table of all cases says which cases are found; others show theirs of them.
document.getElementById("search").addEventListener("input", (event) => {
  const wanted = event.target.value.trim().toLowerCase(), all = [...document.getElementById("cases").tBodies[0].rows];
  const name = (row) => row.querySelector("[data-case]").textContent;
  const found = all.filter((row) => row.textContent.toLowerCase().includes(wanted)).map(name);
  for (const table of tables)
    for (const row of table.tBodies[0].rows) row.hidden = !found.includes(name(row));
  document.getElementById("count").textContent = `${found.length} of ${all.length} cases`;
});
document.body.dataset.ready = "true";
