// Tables sort by click or key, LaTeX is copied. Without scripts the page shows the same in its first order.
"use strict";
(() => {
  const value = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.firstChild?.textContent ?? "";
    const number = parseFloat(text.replaceAll(",", ""));
    return cell.tagName === "TH" || Number.isNaN(number) ? text.trim() : number;
  };
  const compared = (one, two) =>
    typeof one === typeof two ? (typeof one === "number" ? one - two : one.localeCompare(two)) : typeof one === "number" ? 1 : -1;

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0], heads = table.tHead.querySelectorAll("th[data-column]");
    const groups = []; // a row, and those that belong below it
    for (const row of body.rows) {
      if (row.classList.contains("below") && groups.length) groups.at(-1).push(row);
      else groups.push([row]);
    }
    for (const head of heads) {
      const button = document.createElement("button"), column = Number(head.dataset.column);
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const first = typeof value(groups[0][0], column) === "number" ? "descending" : "ascending";
        const second = first === "ascending" ? "descending" : "ascending";
        const before = head.getAttribute("aria-sort");
        const order = before === first ? second : before === second ? null : first;
        for (const other of heads) other.removeAttribute("aria-sort");
        if (order) head.setAttribute("aria-sort", order);
        const sign = order === "descending" ? -1 : 1;
        const sorted = order ? [...groups].sort((a, b) => sign * compared(value(a[0], column), value(b[0], column))) : groups;
        body.append(...sorted.flat());
      });
    }
  }

  for (const button of document.querySelectorAll("button.copy")) {
    const source = button.parentElement.querySelector("pre"), name = button.textContent;
    button.hidden = false;
    button.addEventListener("click", async () => {
      let done = true;
      try {
        await navigator.clipboard.writeText(source.textContent);
      } catch {
        source.closest("details").open = true;
        getSelection().selectAllChildren(source);
        done = document.execCommand("copy");
      }
      button.textContent = done ? "Copied" : "Press Ctrl+C";
      setTimeout(() => { button.textContent = name; }, 2000);
    });
  }
})();
