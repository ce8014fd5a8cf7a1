"use strict";
// Sorting and searching of the table. Cells carry what they are sorted by in data-value; cells without come last.
const table = document.querySelector("table.sortable"), body = table.tBodies[0];
const headers = [...table.tHead.rows[0].cells];

function sortBy(column) {
  const header = headers[column], rising = header.getAttribute("aria-sort") !== "ascending";
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

headers.forEach((header, column) => header.querySelector("button")?.addEventListener("click", () => sortBy(column)));
document.getElementById("search").addEventListener("input", (event) => {
  const wanted = event.target.value.trim().toLowerCase();
  let shown = 0;
  for (const row of body.rows) {
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
    shown += !row.hidden;
  }
  document.getElementById("count").textContent = `${shown} of ${body.rows.length} cases`;
});
document.body.dataset.ready = "true";
