"use strict";

// A click or Enter on a column head sorts by it, again turns it round; rows without a value stay last.
function sortBy(table, column, descending) {
  const body = table.tBodies[0];
  const isNumber = table.tHead.rows[0].cells[column].dataset.kind === "number";
  const valueOf = (row) => row.cells[column].dataset.value;
  const rows = [...body.rows].sort((one, other) => {
    const [a, b] = [valueOf(one), valueOf(other)];
    if (a === "" || b === "") return (a === "") - (b === "");
    const order = isNumber ? a - b : a.localeCompare(b, undefined, { numeric: true });
    return descending ? -order : order;
  });
  body.append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortBy(table, column, descending);
    });
  });
}

// Only what is on the screen plays: dozens of videos at once would stall a laptop.
const watcher = new IntersectionObserver((entries) => {
  for (const { target: video, isIntersecting } of entries) {
    if (!isIntersecting && !video.paused) {
      video.pause();
      video.dataset.resume = "";
    } else if (isIntersecting && "resume" in video.dataset) {
      delete video.dataset.resume;
      video.play().catch(() => {});
    }
  }
});
const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
for (const video of document.querySelectorAll("video")) {
  if (isStill) {
    video.autoplay = false;
    video.pause();
  } else {
    watcher.observe(video);
  }
}
